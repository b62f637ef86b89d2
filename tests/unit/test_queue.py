"""The queue of saves: order, bounds, what a busy one does, and who may wait for it."""

from __future__ import annotations

import threading

import pytest

from ckpt_core.errors import SaveNotDoneError, UsageError
from ckpt_core.pipeline import queue as queue_module
from ckpt_core.pipeline.queue import SaveHandle, SaveQueue


class Work:
    """Jobs that end when they are told to. Handles settle with the step in place of a checkpoint."""

    def __init__(self, queue: SaveQueue) -> None:
        self.queue = queue
        self.ran: list[int] = []
        self.released: list[int] = []
        self.begun = threading.Semaphore(0)
        self.may_end = threading.Semaphore(0)

    def submit(self, step: int) -> SaveHandle:
        handle = SaveHandle(step)
        self.queue.reserve(step)
        self.queue.submit(handle, self.job, lambda: self.released.append(step))
        return handle

    def job(self, handle: SaveHandle) -> None:
        self.begun.release()
        assert self.may_end.acquire(timeout=60)
        self.ran.append(handle.step)
        handle.succeed(handle.step)  # type: ignore[arg-type]

    def until_begun(self) -> None:
        assert self.begun.acquire(timeout=60)

    def end(self, count: int = 1) -> None:
        self.may_end.release(count)


@pytest.fixture
def work() -> Work:
    return Work(SaveQueue(1, "wait"))


def in_thread(function):
    """Runs `function` on another thread; returns the thread and where its outcome will be."""
    outcome: list[object] = []

    def run() -> None:
        try:
            outcome.append(function())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, outcome


def test_jobs_run_in_order_and_settle_their_handles() -> None:
    work = Work(SaveQueue(3, "wait"))
    handles = [work.submit(step) for step in (1, 2, 3)]
    assert not handles[0].done()
    work.end(3)
    assert [handle.result(60) for handle in handles] == [1, 2, 3]
    assert work.queue.wait(60)
    assert work.ran == work.released == [1, 2, 3]


def test_wait_times_out_while_a_job_runs(work: Work) -> None:
    work.submit(1)
    assert work.queue.wait(0.0) is False
    work.end()
    assert work.queue.wait(60) is True


def test_a_full_queue_waits_for_a_place(work: Work) -> None:
    work.submit(1)
    work.until_begun()
    thread, outcome = in_thread(lambda: work.submit(2))
    thread.join(0.05)
    assert thread.is_alive()
    work.end(2)
    thread.join(60)
    assert outcome[0].result(60) == 2
    assert work.ran == [1, 2]


def test_a_full_queue_skips() -> None:
    work = Work(SaveQueue(1, "skip"))
    work.submit(1)
    with pytest.raises(SaveNotDoneError, match="step 2 was skipped") as caught:
        work.submit(2)
    assert caught.value.kind == "skipped"
    assert caught.value.step == 2
    work.end()
    assert work.queue.wait(60)
    work.end()
    assert work.submit(3).result(60) == 3


def test_a_full_queue_replaces_what_has_not_begun(caplog: pytest.LogCaptureFixture) -> None:
    work = Work(SaveQueue(2, "replace"))
    first = work.submit(1)
    work.until_begun()
    second = work.submit(2)
    third = work.submit(3)
    error = second.exception(60)
    assert isinstance(error, SaveNotDoneError)
    assert error.kind == "replaced"
    assert error.step == 2
    assert work.released == [2]
    assert "step 2 was replaced by that of step 3" in caplog.text
    work.end(2)
    assert (first.result(60), third.result(60)) == (1, 3)


def test_replace_waits_where_all_have_begun() -> None:
    work = Work(SaveQueue(1, "replace"))
    work.submit(1)
    work.until_begun()
    thread, outcome = in_thread(lambda: work.submit(2))
    thread.join(0.05)
    assert thread.is_alive()
    work.end(2)
    thread.join(60)
    assert outcome[0].result(60) == 2


def test_whoever_learns_of_a_replacement_may_use_the_queue() -> None:
    """The callback runs while nobody holds the queue's lock, so even another thread gets in."""
    work = Work(SaveQueue(2, "replace"))
    work.submit(1)
    work.until_begun()
    replaced = work.submit(2)
    answers = []

    def ask(handle: SaveHandle) -> None:
        thread, outcome = in_thread(lambda: work.queue.wait(0.0))
        thread.join(10)
        answers.extend(outcome)

    replaced.add_done_callback(ask)
    work.submit(3)
    assert answers == [False]
    work.end(2)
    assert work.queue.wait(60)


def test_a_cancelled_place_is_free_again(work: Work) -> None:
    work.queue.reserve(1)
    work.queue.cancel()
    work.end()
    assert work.submit(2).result(60) == 2


def test_close_refuses_new_saves_and_finishes_pending_ones(work: Work) -> None:
    handle = work.submit(1)
    thread, _ = in_thread(work.queue.close)
    work.end()
    thread.join(60)
    assert handle.result(0) == 1
    with pytest.raises(SaveNotDoneError) as caught:
        work.queue.reserve(2)
    assert caught.value.kind == "closed"
    work.queue.close()


def test_close_waits_for_a_place_that_is_taken_and_not_filled_yet(work: Work) -> None:
    """The state is being staged when another thread closes: that save is still made."""
    work.queue.reserve(1)
    thread, _ = in_thread(work.queue.close)
    thread.join(0.05)
    assert thread.is_alive()
    handle = SaveHandle(1)
    work.end()
    work.queue.submit(handle, work.job, lambda: None)
    assert handle.result(60) == 1
    thread.join(60)
    assert not thread.is_alive()


def test_close_wakes_those_who_wait_for_a_place(work: Work) -> None:
    work.submit(1)
    work.until_begun()
    waiting, outcome = in_thread(lambda: work.submit(2))
    waiting.join(0.05)
    closing, _ = in_thread(work.queue.close)
    waiting.join(60)
    assert isinstance(outcome[0], SaveNotDoneError)
    work.end()
    closing.join(60)
    assert work.ran == [1]


def test_run_waits_for_its_turn_and_runs_on_the_caller(work: Work) -> None:
    work.submit(1)
    ran_on = []
    handle = SaveHandle(2)

    def job(handle: SaveHandle) -> None:
        ran_on.append(threading.current_thread())
        assert work.ran == [1]
        handle.succeed(2)  # type: ignore[arg-type]

    work.end()
    work.queue.run(handle, job)
    assert ran_on == [threading.current_thread()]
    assert handle.result(0) == 2


def test_run_is_not_skipped() -> None:
    work = Work(SaveQueue(1, "skip"))
    work.submit(1)
    work.end(2)
    handle = SaveHandle(2)
    work.queue.run(handle, work.job)
    assert handle.result(0) == 2


def test_run_is_refused_after_close(work: Work) -> None:
    work.queue.close()
    with pytest.raises(SaveNotDoneError) as caught:
        work.queue.run(SaveHandle(1), work.job)
    assert caught.value.kind == "closed"


@pytest.mark.parametrize("outer", ["background", "caller"])
def test_a_save_within_a_save_is_refused_and_does_not_wait_for_itself(outer: str) -> None:
    queue = SaveQueue(1, "wait")
    errors: list[Exception] = []
    waited: list[bool] = []

    def job(handle: SaveHandle) -> None:
        assert queue.inside
        for attempt in (lambda: queue.reserve(2), lambda: queue.run(SaveHandle(2), job)):
            with pytest.raises(UsageError, match="its own") as caught:
                attempt()
            errors.append(caught.value)
        waited.append(queue.wait())
        handle.succeed(1)  # type: ignore[arg-type]

    handle = SaveHandle(1)
    if outer == "caller":
        queue.run(handle, job)
    else:
        queue.reserve(1)
        queue.submit(handle, job, lambda: None)
    handle.result(60)
    assert queue.wait(60)
    assert [error.kind for error in errors] == ["nested", "nested"]
    assert waited == [False]
    assert not queue.inside


def test_a_job_that_raises_is_told_and_the_queue_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    queue = SaveQueue(2, "wait")

    def bad(handle: SaveHandle) -> None:
        raise SystemExit(3)

    def good(handle: SaveHandle) -> None:
        handle.succeed(2)  # type: ignore[arg-type]

    released = []
    first, second = SaveHandle(1), SaveHandle(2)
    queue.reserve(1)
    queue.submit(first, bad, lambda: released.append(1))
    queue.reserve(2)
    queue.submit(second, good, lambda: released.append(2))
    assert isinstance(first.exception(60), SystemExit)
    assert second.result(60) == 2
    assert queue.wait(60)
    assert released == [1, 2]
    assert "step 1 ended with an unexpected error" in caplog.text


def test_without_a_thread_to_be_had_the_save_is_made_at_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class NoThread(threading.Thread):
        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    monkeypatch.setattr(queue_module.threading, "Thread", NoThread)
    work = Work(SaveQueue(1, "wait"))
    work.end(2)
    assert work.submit(1).result(0) == 1
    assert work.submit(2).result(0) == 2
    assert "made at once" in caplog.text


def test_no_thread_is_left_when_there_is_no_work(work: Work) -> None:
    work.submit(1)
    work.until_begun()
    assert any(thread.name == "ckpt-save" for thread in threading.enumerate())
    work.end()
    assert work.queue.wait(60)
    for thread in threading.enumerate():
        if thread.name == "ckpt-save":
            thread.join(60)
    assert not any(thread.name == "ckpt-save" for thread in threading.enumerate())


@pytest.mark.parametrize("bad", [0, -1, True, 1.5, "1"])
def test_max_pending_must_be_a_number_of_saves(bad: object) -> None:
    with pytest.raises(UsageError, match="max_pending"):
        SaveQueue(bad, "wait")  # type: ignore[arg-type]


def test_on_busy_must_be_a_word_it_knows() -> None:
    with pytest.raises(UsageError, match="on_busy='drop'"):
        SaveQueue(1, "drop")  # type: ignore[arg-type]


def test_a_handle_tells_how_it_stands() -> None:
    handle = SaveHandle(7)
    assert "step=7 pending" in repr(handle)
    with pytest.raises(TimeoutError):
        handle.result(0)
    handle.fail(SaveNotDoneError("why not"))
    assert "failed: why not" in repr(handle)
    with pytest.raises(SaveNotDoneError):
        handle.result()
    other = SaveHandle(8)
    other.succeed("checkpoint")  # type: ignore[arg-type]
    assert "step=8 done" in repr(other)
