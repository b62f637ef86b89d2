"""What users of Trainer do besides being killed: signals, errors, going on, other models, evaluation, arguments."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trainer_case import PEFT_ASKS, Pair, new_model, plain_trainer
from transformers import BertForMaskedLM, EarlyStoppingCallback, TrainerCallback

from ckpt_core import (
    CheckpointManager,
    EveryEpochs,
    KeepLast,
    NotFoundError,
    SaveFailedError,
    StateMismatchError,
    StoreError,
    UsageError,
)
from ckpt_core.stores.memory import MemoryStore
from ckpt_transformers import CheckpointCallback, ingest, load_weights, materialize
from contract.faults import FaultyStore
from contract.training import assert_same_training, digest


def callback(folder: Path, experiment: str = "words", **options: Any) -> CheckpointCallback:
    return CheckpointCallback(folder / "store", experiment=experiment, **options)


def steps(folder: Path, experiment: str = "words") -> list[int]:
    with CheckpointManager(folder / "store", experiment=experiment) as manager:
        return [each.step for each in manager.checkpoints()]


# -- how it can end ---------------------------------------------------------------------------------


def test_who_handled_the_signal_before_goes_on_when_the_state_is_saved(tmp_path: Path) -> None:
    pair = Pair(tmp_path, {"handler": "exit"})
    first = pair.job.run(die={"signal": [2, "SIGTERM"]})
    assert first.status == 3, first.output
    last = pair.job.complete()
    assert last.only("begin")["step"] == 3  # after the update in which it came; saves are due at even ones
    assert_same_training(pair.reference, [first, last])


def test_no_state_is_saved_after_an_exception_that_came_in_the_midst_of_a_step(tmp_path: Path) -> None:
    class Failing(TrainerCallback):
        def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 3:
                raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        plain_trainer(tmp_path, [callback(tmp_path), Failing()]).train()
    assert steps(tmp_path) == [2]


@pytest.mark.parametrize(("norm", "saved"), [(False, [2, 3]), (True, [2])], ids=["weights", "buffers"])
def test_the_state_before_an_exception_is_saved_if_it_is_still_there(
    tmp_path: Path, norm: bool, saved: list[int]
) -> None:
    class Failing(TrainerCallback):
        def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 3:  # a batch of the next update went through the model
                raise RuntimeError("on purpose")

    trainer = plain_trainer(
        tmp_path, [callback(tmp_path), Failing()], model=new_model(norm=norm), gradient_accumulation_steps=2
    )
    with pytest.raises(RuntimeError, match="on purpose"):
        trainer.train()
    assert steps(tmp_path) == saved


def test_training_goes_on_while_a_save_is_written(tmp_path: Path) -> None:
    store = GatedStore(MemoryStore())

    class Opening(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 4:
                assert store.reached.wait(60)
                store.gate.set()

    with CheckpointManager(store, experiment="words") as manager:
        plain_trainer(tmp_path, [CheckpointCallback(manager=manager), Opening()], max_steps=6).train()
        assert [each.step for each in manager.checkpoints()] == [2, 4, 6]
        saved, trained = manager.load("step=2"), manager.load("step=4")
    assert digest(saved["model"]) != digest(
        trained["model"]
    )  # what was saved is what was there when it was asked


class GatedStore(FaultyStore):
    """The first pack waits until the gate is opened."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.reached, self.gate = threading.Event(), threading.Event()

    def change(self, what: str, work: Callable[[], Any]) -> Any:
        if what.startswith("create packs/"):
            self.reached.set()
            assert self.gate.wait(60), "training waits for the save"
        return super().change(what, work)


def test_training_is_stopped_by_a_save_that_fails_if_asked_to(tmp_path: Path) -> None:
    store = FailingStore(MemoryStore())
    with CheckpointManager(store, experiment="words", on_save_error="stop") as manager:
        trainer = plain_trainer(tmp_path, [CheckpointCallback(manager=manager)])
        with pytest.raises(SaveFailedError, match="step 2: scripted fault"):
            trainer.train()
        assert trainer.state.global_step < 12
        assert manager.checkpoints()  # the state when training was stopped


class FailingStore(FaultyStore):
    """Refuses the first pack."""

    failed = False

    def change(self, what: str, work: Callable[[], Any]) -> Any:
        if what.startswith("create packs/") and not self.failed:
            self.failed = True
            raise StoreError("scripted fault", kind="io")
        return super().change(what, work)


# -- how it can begin -------------------------------------------------------------------------------


def test_a_complete_training_is_not_trained_further_until_more_is_asked_for(tmp_path: Path) -> None:
    first = plain_trainer(tmp_path, [callback(tmp_path)])
    first.train()
    ours = callback(tmp_path)
    again = plain_trainer(tmp_path, [ours])
    result = again.train()
    assert ours.resumption is not None
    assert ours.resumption.kind == "complete"
    assert result.global_step == 12
    assert digest(again.model.state_dict()) == digest(first.model.state_dict())
    assert result.training_loss == pytest.approx(first.state.log_history[-1]["train_loss"], abs=0)
    assert steps(tmp_path) == [2, 4, 6, 8, 10, 12]
    assert plain_trainer(tmp_path, [callback(tmp_path)], num_train_epochs=3).train().global_step == 18
    assert steps(tmp_path) == [2, 4, 6, 8, 10, 12, 14, 16, 18]


def test_what_was_stopped_in_an_epoch_goes_on_there_when_more_is_asked_for(tmp_path: Path) -> None:
    plain_trainer(tmp_path, [callback(tmp_path)], max_steps=9).train()
    seen: list[Any] = []

    class Seeing(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            seen.append(state.epoch)

    ours = callback(tmp_path)
    plain_trainer(tmp_path, [ours, Seeing()], max_steps=12).train()
    assert ours.resumption is not None
    assert ours.resumption.state is not None
    assert not ours.resumption.state.keys() & {"model", "optimizer"}  # they are not held twice while training
    assert seen == [1.5, pytest.approx(1 + 4 / 6), pytest.approx(1 + 5 / 6)]


def test_a_new_attempt_leaves_the_old_one_alone(tmp_path: Path) -> None:
    plain_trainer(tmp_path, [callback(tmp_path)], num_train_epochs=1).train()
    ours = callback(tmp_path, resume=None)
    trainer = plain_trainer(tmp_path, [ours], num_train_epochs=1)
    trainer.train()
    assert ours.resumption is not None
    assert ours.resumption.kind == "new-attempt"
    assert steps(tmp_path) == [2, 4, 6, 2, 4, 6]


def test_train_is_told_a_reference(tmp_path: Path) -> None:
    plain_trainer(tmp_path, [callback(tmp_path)], num_train_epochs=1).train()
    ours = callback(tmp_path)
    plain_trainer(tmp_path, [ours], num_train_epochs=1).train(resume_from_checkpoint="step=4")
    assert ours.resumption is not None
    assert ours.resumption.step == 4
    with pytest.raises(NotFoundError):
        plain_trainer(tmp_path, [callback(tmp_path)]).train(resume_from_checkpoint="step=5")
    with pytest.raises(NotFoundError, match="neither the store nor"):
        plain_trainer(tmp_path, [callback(tmp_path, "other")]).train(resume_from_checkpoint=True)


def test_where_weights_to_begin_with_came_from_is_told(tmp_path: Path) -> None:
    plain_trainer(tmp_path, [callback(tmp_path)], max_steps=4).train()
    tuned = callback(tmp_path, "tuned", init_from="words@step=2")
    plain_trainer(tmp_path, [tuned], max_steps=2).train()
    with CheckpointManager(tmp_path / "store", experiment="tuned") as manager:
        (made,) = manager.checkpoints()
        source = manager.resolve("words@step=2")
    assert (made.step, made.attempt.resumed_from, made.attempt.resumed_step) == (2, source.id, 2)
    assert made.attempt.lineage == made.attempt.id


def test_a_checkpoint_without_the_optimizer_is_not_gone_on_from(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(RuntimeError, match="on purpose"):
        plain_trainer(tmp_path, [callback(tmp_path), Stopping(5)], save_only_model=True).train()
    with CheckpointManager(tmp_path / "store", experiment="words") as manager:
        assert manager.load().keys() >= {"model", "files", "trainer"}
        assert "optimizer" not in manager.load()
    with pytest.raises(UsageError, match="the model only"):
        plain_trainer(tmp_path, [callback(tmp_path, resume="latest")]).train()
    ours = callback(tmp_path)
    plain_trainer(tmp_path, [ours], save_only_model=True).train()
    assert ours.resumption is not None
    assert ours.resumption.kind == "new-attempt"
    assert "training begins anew" in caplog.text
    tuned = callback(tmp_path, resume=None, init_from="latest")
    with CheckpointManager(tmp_path / "store", experiment="words") as manager:
        weights = manager.load()["model"]
    began: list[str] = []

    class Begins(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            began.append(digest(model.state_dict()))

    plain_trainer(tmp_path, [tuned, Begins()], max_steps=1).train()
    assert began == [digest(weights)]


class Stopping(TrainerCallback):
    """Ends training by an exception, before an update."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            raise RuntimeError("on purpose")


# -- models -----------------------------------------------------------------------------------------


def test_the_best_model_is_there_at_the_end(tmp_path: Path) -> None:
    ours = callback(tmp_path)
    trainer = plain_trainer(
        tmp_path, [EarlyStoppingCallback(3), ours], load_best_model_at_end=True, eval_steps=1, save_steps=3,
        learning_rate=0.1,
    )  # fmt: skip
    trainer.train()
    losses = {each["step"]: each["eval_loss"] for each in trainer.state.log_history if "eval_loss" in each}
    best = min(losses, key=lambda step: losses[step])
    assert best % 3, "the test wants a best step that is not saved otherwise"
    with CheckpointManager(tmp_path / "store", experiment="words", metric="eval_loss") as manager:
        assert manager.resolve("best").step == best
        assert trainer.state.best_model_checkpoint == f"words@step={best}"
        folder = ours.materialize(trainer.state.best_model_checkpoint, tmp_path / "best")
        assert digest(trainer.model.state_dict()) == digest(manager.load("best")["model"])
        assert digest(trainer.model.state_dict()) != digest(manager.load("latest")["model"])
    ours.manager.close()
    loaded = BertForMaskedLM.from_pretrained(folder)
    assert digest(loaded.state_dict()) == digest(trainer.model.state_dict())


@pytest.mark.filterwarnings(PEFT_ASKS)
def test_tied_weights_are_stored_once_and_adapters_cost_what_they_weigh(tmp_path: Path) -> None:
    plain_trainer(tmp_path, [callback(tmp_path)], num_train_epochs=1).train()
    adapted = new_model(peft=True)
    plain_trainer(tmp_path, [callback(tmp_path, "adapted")], model=adapted, num_train_epochs=1).train()
    plain = callback(tmp_path, "weights", save_only_model=True)
    plain_trainer(tmp_path, [plain], model=adapted, num_train_epochs=1).train()
    with CheckpointManager(tmp_path / "store", experiment="words") as manager:
        saved = manager.load()["model"]
        words = saved["bert.embeddings.word_embeddings.weight"]
        assert saved["cls.predictions.decoder.weight"].data_ptr() == words.data_ptr()
        once = {each.data_ptr(): each.nbytes for each in saved.values()}
        assert sum(once.values()) == sum(each.nbytes for each in new_model().parameters())
        state = manager.load("adapted@latest")
        costs = [manager.resolve(f"{each}@latest").written_bytes for each in ("adapted", "weights")]
    trained = {name: each for name, each in adapted.named_parameters() if each.requires_grad}
    assert state["model"].keys() == trained.keys()
    assert state["adapters"]["default"].keys() == {name.replace(".default", "") for name in trained}
    # The adapters, and two moments of each; and besides a log, random states, configurations: the frozen
    # weights, which are three times as much as that, are nowhere.
    weight = sum(each.nbytes for each in trained.values())
    assert costs[0] - 3 * weight < 20_000
    assert costs[1] - weight < 20_000


@pytest.mark.filterwarnings(PEFT_ASKS)
def test_adapters_of_a_folder_that_do_not_fit_are_told(tmp_path: Path) -> None:
    ours = callback(tmp_path)
    plain_trainer(tmp_path, [ours], model=new_model(peft=True), max_steps=2).train()
    with CheckpointManager(tmp_path / "store", experiment="words") as manager:
        folder = materialize(manager, "latest", tmp_path / "folder")
    with CheckpointManager(tmp_path / "store", experiment="read") as manager:
        ingest(manager, folder)
        changed = new_model(peft=True, rank=3)
        before = digest(changed.state_dict())
        with pytest.raises(StateMismatchError, match=r"\[2, 32\] -> \[3, 32\]"):
            load_weights(changed, manager, "latest")
        assert digest(changed.state_dict()) == before
        fits = new_model(peft=True)
        report = load_weights(
            fits, manager, "latest", strict=False, renames={"base_model.model.bert.encoder.layer.0": None}
        )
        assert len(report.left_out) == len(report.loaded) == len(report.missing) == 4
        with pytest.raises(UsageError, match="adapters/default"):
            load_weights(new_model(), manager, "latest")


# -- arguments --------------------------------------------------------------------------------------


def test_what_the_callback_is_told_goes_before_the_arguments(tmp_path: Path) -> None:
    trainer = plain_trainer(tmp_path, [callback(tmp_path, save_steps=4, save_total_limit=2)])
    args, names = trainer.args, set(vars(trainer))
    loader = trainer.get_eval_dataloader
    trainer.train()
    assert steps(tmp_path) == [8, 12]
    assert trainer.args is args
    assert (args.save_steps, args.save_total_limit) == (2, None)
    ours = {"train", "_ckpt_training"}
    assert ours <= names
    assert not (set(vars(trainer)) - names) & set(dir(type(trainer)))  # no method is replaced any more
    assert trainer.get_eval_dataloader == loader
    assert not list((tmp_path / "out").glob("checkpoint-*"))


def test_a_policy_stands_in_the_place_of_the_save_strategy(tmp_path: Path) -> None:
    plain_trainer(tmp_path, [callback(tmp_path, every_n_steps=5)]).train()
    assert steps(tmp_path) == [5, 10, 12]
    plain_trainer(tmp_path, [callback(tmp_path, "ends", save_policy=EveryEpochs(1))]).train()
    assert steps(tmp_path, "ends") == [6, 12]
    plain_trainer(
        tmp_path, [callback(tmp_path, "best", save_strategy="best", retention=[KeepLast(1)])]
    ).train()
    assert len(steps(tmp_path, "best")) == 1
    plain_trainer(tmp_path, [callback(tmp_path, "none", save_strategy="no")]).train()
    assert steps(tmp_path, "none") == [12]


def test_the_best_is_what_the_arguments_call_it(tmp_path: Path) -> None:
    ours = callback(tmp_path)
    plain_trainer(
        tmp_path, [ours], metric_for_best_model="accuracy", greater_is_better=True, eval_strategy="no",
        save_strategy="no", max_steps=1,
    )  # fmt: skip
    assert (ours.manager.metric, ours.manager.mode) == ("eval_accuracy", "max")
    ours.manager.close()
    own = callback(tmp_path, metric="eval_perplexity", mode="max")
    plain_trainer(tmp_path, [own], metric_for_best_model="loss")
    assert (own.manager.metric, own.manager.mode) == ("eval_perplexity", "max")
    own.manager.close()


def test_metrics_are_those_of_the_step(tmp_path: Path) -> None:
    plain_trainer(tmp_path, [callback(tmp_path)], logging_steps=4, num_train_epochs=1).train()
    with CheckpointManager(tmp_path / "store", experiment="words") as manager:
        found = {each.step: set(each.metrics) for each in manager.checkpoints()}
    assert {"eval_loss"} <= found[2]
    assert "loss" not in found[2]
    assert {"eval_loss", "loss", "learning_rate"} <= found[4]
    assert not any("epoch" in names for names in found.values())


def test_a_callback_that_comes_late_says_what_to_do(tmp_path: Path) -> None:
    trainer = plain_trainer(tmp_path, [])
    ours = callback(tmp_path)
    trainer.add_callback(ours)
    with pytest.raises(UsageError, match="attach"):
        trainer.train()
    ours.attach(trainer)
    trainer.train()
    assert steps(tmp_path) == [2, 4, 6, 8, 10, 12]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "say where to save"),
        ({"root": "x", "experiment": "e", "metric": "a", "metric_for_best_model": "b"}, "the same thing"),
        ({"root": "x", "experiment": "e", "ingest": True, "every_n_steps": 2}, "it is Trainer that saves"),
    ],
)
def test_what_cannot_mean_anything_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        CheckpointCallback(**options)


def test_signals_are_given_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    before = signal.getsignal(signal.SIGTERM)
    plain_trainer(tmp_path, [callback(tmp_path)], max_steps=2).train()
    assert signal.getsignal(signal.SIGTERM) is before
