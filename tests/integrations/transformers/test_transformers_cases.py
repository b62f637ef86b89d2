"""What users of Trainer do besides being killed: signals, errors, going on, other models, evaluation, arguments."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from trainer_case import PEFT_ASKS, Pair, new_model, plain_trainer
from transformers import EarlyStoppingCallback, TrainerCallback
from words import WORDS

from ckpt_core import (
    BaseHook,
    CheckpointManager,
    EveryEpochs,
    HookContext,
    HookEvent,
    KeepLast,
    NotFoundError,
    StateMismatchError,
    StoreError,
    UsageError,
)
from ckpt_core.stores.memory import MemoryStore
from ckpt_transformers import CheckpointCallback, load_weights
from contract.faults import FaultyStore
from contract.training import assert_same_training, digest


def callback(folder: Path, experiment: str = "words", **options: Any) -> CheckpointCallback:
    return CheckpointCallback(folder / "store", experiment=experiment, **options)


def steps(folder: Path, experiment: str = "words") -> list[int]:
    with CheckpointManager(folder / "store", experiment=experiment) as manager:
        return [each.step for each in manager.checkpoints()]


# -- how it can end ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "handler", "status"), [("SIGTERM", "none", -15), ("SIGTERM", "exit", 3)])
def test_a_signal_is_waited_for_by_a_save_and_then_takes_its_course(
    tmp_path: Path, name: str, handler: str, status: int
) -> None:
    pair = Pair(tmp_path, {"handler": handler})
    first = pair.job.run(die={"signal": [2, name]})
    assert first.status == status, first.output
    last = pair.job.complete()
    assert last.only("begin")["step"] == 3  # after the update in which it came; saves are due at even ones
    assert_same_training(pair.reference, [first, last])


def test_after_an_exception_the_last_good_state_is_saved(tmp_path: Path) -> None:
    pair = Pair(tmp_path, {})
    first = pair.job.run(die={"raise": 3})
    assert first.status == 1
    assert "RuntimeError: on purpose" in first.output
    last = pair.job.complete()
    assert last.only("begin")["step"] == 3
    assert_same_training(pair.reference, [first, last])


def test_no_state_is_saved_after_an_exception_that_came_in_the_midst_of_a_step(tmp_path: Path) -> None:
    class Failing(TrainerCallback):
        def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 3:
                raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        plain_trainer(tmp_path, [callback(tmp_path), Failing()]).train()
    assert steps(tmp_path) == [2]


def test_a_save_that_fails_leaves_training_alone_and_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = BreakingStore(MemoryStore())
    with CheckpointManager(store, experiment="words") as manager:
        manager.hooks.register_hook(Breaking(store, 4))
        trainer = plain_trainer(tmp_path, [CheckpointCallback(manager=manager)])
        trainer.train()
        assert trainer.state.global_step == 12
        assert [step for step, _ in manager.failures] == [4]
        assert [each.step for each in manager.checkpoints()] == [2, 6, 8, 10, 12]
    assert "reminder: the save of step 4 failed" in caplog.text


def test_the_failure_of_the_last_save_is_raised(tmp_path: Path) -> None:
    store = BreakingStore(MemoryStore())
    with CheckpointManager(store, experiment="words") as manager:
        manager.hooks.register_hook(Breaking(store, 12))
        trainer = plain_trainer(tmp_path, [CheckpointCallback(manager=manager)])
        with pytest.raises(StoreError, match="scripted fault"):
            trainer.train()


class BreakingStore(FaultyStore):
    """Refuses the next pack when it is told to."""

    breaks = False

    def change(self, what: str, work: Callable[[], Any]) -> Any:
        if self.breaks and what.startswith("create packs/"):
            self.breaks = False
            raise StoreError("scripted fault", kind="io")
        return super().change(what, work)


class Breaking(BaseHook):
    """Lets the save of one step fail."""

    events = (HookEvent.BEFORE_SAVE,)

    def __init__(self, store: BreakingStore, step: int) -> None:
        super().__init__()
        self.store, self.step = store, step

    def execute(self, context: HookContext) -> None:
        self.store.breaks |= context.step == self.step


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

    plain_trainer(tmp_path, [callback(tmp_path), Seeing()], max_steps=12).train()
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


def test_another_experiments_best_is_begun_with_once(tmp_path: Path) -> None:
    plain_trainer(tmp_path, [callback(tmp_path)]).train()
    with CheckpointManager(tmp_path / "store", experiment="words", metric="eval_loss") as manager:
        best = manager.load("best")["model"]
    began: list[str] = []

    class Begins(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            began.append(digest(model.state_dict()))

    tuned = callback(tmp_path, "tuned", init_from="words@best")
    trainer = plain_trainer(tmp_path, [tuned, Begins()], num_train_epochs=1)
    trainer.train()
    assert began == [digest(best)]
    assert trainer.state.global_step == 6
    again = callback(tmp_path, "tuned", init_from="words@best")
    plain_trainer(tmp_path, [again, Begins()], num_train_epochs=2).train()
    assert again.resumption is not None
    assert (again.resumption.kind, again.resumption.step) == ("complete", 6)
    assert began[1] == digest(trainer.model.state_dict())


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
        assert digest(trainer.model.state_dict()) == digest(manager.load("best")["model"])
        assert digest(trainer.model.state_dict()) != digest(manager.load("latest")["model"])


def test_evaluation_only(tmp_path: Path) -> None:
    trained = plain_trainer(tmp_path, [callback(tmp_path)])
    trained.train()
    ours = callback(tmp_path)
    trainer = plain_trainer(tmp_path, [ours])
    report = ours.load("best")
    assert report.ok
    assert report.checkpoint is not None
    found = trainer.evaluate()["eval_loss"]
    assert found == min(each["eval_loss"] for each in trained.state.log_history if "eval_loss" in each)
    assert ours.resumption is None
    assert steps(tmp_path) == [2, 4, 6, 8, 10, 12]
    assert [each.attempt.number for each in ours.manager.checkpoints()] == [1] * 6
    ours.manager.close()


def test_a_changed_model_is_told_what_fits(tmp_path: Path) -> None:
    plain_trainer(tmp_path, [callback(tmp_path)], num_train_epochs=1).train()
    changed = new_model()
    changed.resize_token_embeddings(WORDS + 3)
    changed.extra = torch.nn.Linear(2, 2)
    changed.encoder, changed.bert = changed.bert, None
    before = digest(changed.state_dict())
    with CheckpointManager(tmp_path / "store", experiment="words") as manager:
        with pytest.raises(StateMismatchError, match="only in the checkpoint") as caught:
            load_weights(changed, manager, "latest")
        assert digest(changed.state_dict()) == before
        assert "extra.weight" in caught.value.paths
        report = load_weights(
            changed,
            manager,
            "latest",
            strict=False,
            renames={"bert": "encoder", "cls.predictions.transform": None},
        )
        assert not report.ok
        assert report.missing == (
            "cls.predictions.transform.dense.weight", "cls.predictions.transform.dense.bias",
            "cls.predictions.transform.LayerNorm.weight", "cls.predictions.transform.LayerNorm.bias",
            "extra.weight", "extra.bias",
        )  # fmt: skip
        assert not report.unexpected
        assert {name for name, *_ in report.misshapen} == {
            "encoder.embeddings.word_embeddings.weight", "cls.predictions.bias",
            "cls.predictions.decoder.weight", "cls.predictions.decoder.bias",
        }  # fmt: skip
        assert "[200, 32] -> [203, 32]" in str(report)
        saved = manager.load()["model"]
        name = "encoder.layer.0.attention.self.query.weight"
        assert torch.equal(changed.state_dict()[f"encoder.{name}"], saved[f"bert.{name}"])


@pytest.mark.filterwarnings(PEFT_ASKS)
def test_tied_weights_are_stored_once_and_adapters_cost_what_they_weigh(tmp_path: Path) -> None:
    plain_trainer(tmp_path, [callback(tmp_path)], num_train_epochs=1).train()
    adapted = new_model(peft=True)
    plain_trainer(tmp_path, [callback(tmp_path, "adapted")], model=adapted, num_train_epochs=1).train()
    with CheckpointManager(tmp_path / "store", experiment="words") as manager:
        saved = manager.load()["model"]
        words = saved["bert.embeddings.word_embeddings.weight"]
        assert saved["cls.predictions.decoder.weight"].data_ptr() == words.data_ptr()
        once = {each.data_ptr(): each.nbytes for each in saved.values()}
        assert sum(once.values()) == sum(each.nbytes for each in new_model().parameters())
        state = manager.load("adapted@latest")
    trained = {name: each for name, each in adapted.named_parameters() if each.requires_grad}
    assert state["model"].keys() == trained.keys()
    assert state["adapters"]["default"].keys() == {name.replace(".default", "") for name in trained}
    once = {
        each.data_ptr(): each.nbytes
        for part in (state["model"], state["adapters"]["default"])
        for each in part.values()
    }
    assert sum(once.values()) == sum(each.nbytes for each in trained.values())
    assert not state["buffers"]


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
