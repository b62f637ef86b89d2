"""What happens around a fit: beginning, end, failures, other callbacks, other models. No process is killed here."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from fit_case import BACKEND, X, Y, bits, fit, model_of, ours

from ckpt_core import (
    BaseHook,
    CheckpointManager,
    EverySteps,
    HookContext,
    HookEvent,
    Never,
    StateMismatchError,
    UsageError,
)
from ckpt_keras import CheckpointCallback
from ckpt_keras.codec import host_array
from ckpt_keras.watched import Guarded

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)


@pytest.fixture(autouse=True)
def _seeds() -> None:
    keras.utils.set_random_seed(1)


class Counts(keras.callbacks.Callback):
    """How often what was called."""

    def __init__(self) -> None:
        super().__init__()
        self.epochs: list[int] = []
        self.batches = 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.epochs.append(epoch)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.batches += 1


class Epochs(keras.callbacks.Callback):
    """The epochs that this very object was told of; asked for what it remembers, it says nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.seen.append(epoch)

    def get_state(self) -> None:
        return None

    def set_state(self, state: None) -> None:
        assert state is None


class Fails(keras.callbacks.Callback):
    """Raises in one of its methods, at the so manieth call."""

    def __init__(self, method: str, calls: int) -> None:
        super().__init__()
        self.left = calls
        setattr(self, method, self._fail)

    def _fail(self, *_: Any, **__: Any) -> None:
        self.left -= 1
        if self.left == 0:
            raise RuntimeError("on purpose")


# -- beginning and end --------------------------------------------------------------------------------


def test_complete_is_complete_until_more_is_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = model_of()
    history = fit(whole, epochs=3)
    keras.utils.set_random_seed(1)
    first, told = model_of(), Epochs()
    fit(first, ours(tmp_path), told, epochs=2)
    assert told.seen == [0, 1]

    caplog.set_level(logging.INFO)
    again, told = model_of(), Epochs()
    found = fit(again, ours(tmp_path), told, epochs=2)
    assert told.seen == []
    assert "nothing to do" in caplog.text
    assert bits(again) == bits(first)
    assert found.epoch == [0, 1]
    assert found.history["loss"] == history.history["loss"][:2]

    more, told = model_of(), Epochs()
    found = fit(more, ours(tmp_path), told, epochs=3)
    assert told.seen == [2]
    assert bits(more) == bits(whole)
    assert found.history == history.history


def test_a_second_fit_of_the_model_begins_where_it_is_told_to(tmp_path: Path) -> None:
    fit(model_of(), ours(tmp_path), epochs=2)
    model, told = model_of(), Epochs()
    fit(model, ours(tmp_path), told, epochs=3)
    assert told.seen == [2]
    assert model._initial_epoch is None
    for epochs, initial in ((1, 0), (4, 3)):
        told = Epochs()
        fit(model, told, epochs=epochs, initial_epoch=initial)
        assert told.seen == list(range(initial, epochs))


def test_the_same_callback_in_another_fit(tmp_path: Path) -> None:
    model, callback, told = model_of(), ours(tmp_path), Epochs()
    fit(model, callback, told, epochs=2)
    fit(model, callback, told, epochs=4)
    assert told.seen == [0, 1, 2, 3]
    assert callback.resumption is not None
    assert callback.resumption.kind == "complete"
    with CheckpointManager(tmp_path, experiment="fit") as manager:
        assert [each.step for each in manager.checkpoints()][-1] == 16


def test_a_fit_is_left_as_it_was(tmp_path: Path) -> None:
    kinds: list[str] = []

    class Looks(keras.callbacks.Callback):
        def on_train_begin(self, logs: Any = None) -> None:
            kinds.append(type(self.model.train_function).__name__)

    model = model_of()
    fit(model, ours(tmp_path), Looks())
    assert not any(isinstance(value, Guarded) for value in vars(model).values())
    assert model._initial_epoch is None
    assert "evaluate" not in vars(model)
    assert kinds == ["Guarded"]


def test_outside_of_a_fit_it_says_what_it_is_for(tmp_path: Path) -> None:
    callbacks = keras.callbacks.CallbackList([ours(tmp_path)], model=model_of())
    with pytest.raises(UsageError, match=r"model\.fit"):
        callbacks.on_train_begin()


def test_resume_none_begins_anew_and_a_reference_where_it_says(tmp_path: Path) -> None:
    fit(model_of(), ours(tmp_path, save_freq=3), epochs=2)
    callback, told = ours(tmp_path, resume=None), Epochs()
    fit(model_of(), callback, told, epochs=1)
    assert told.seen == [0]
    assert callback.resumption is not None
    assert callback.resumption.kind == "new-attempt"
    with CheckpointManager(tmp_path, experiment="fit") as manager:
        old = next(each for each in manager.checkpoints() if each.step == 6)
    callback = ours(tmp_path, resume=old.id)
    fit(model_of(), callback, epochs=2)
    assert callback.resumption.step == 6


def test_initial_epoch_of_the_resumed_fit_is_the_checkpoints(tmp_path: Path) -> None:
    """Keras takes an epoch 0 to go on in for nothing said."""
    fit(model_of(), ours(tmp_path, save_freq=3), epochs=1)
    told = Epochs()
    fit(model_of(), ours(tmp_path, resume="step=3"), told, epochs=2, initial_epoch=1)
    assert told.seen == [0, 1]


# -- other callbacks ----------------------------------------------------------------------------------


class Remembers(keras.callbacks.Callback):
    def __init__(self) -> None:
        super().__init__()
        self.rng = np.random.default_rng(3)
        self.mean = keras.metrics.Mean()
        self.table = np.zeros(3)
        self.shared = self.table
        self.best: Any = None
        self.names = {"a": [1]}
        self.setting = 5
        self.function = len

    def on_train_begin(self, logs: Any = None) -> None:
        self.best = None

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.table[batch % 3] += self.rng.random()
        self.mean.update_state(logs["loss"])
        self.best = (batch, logs["loss"])
        self.names["a"].append(batch)

    def values(self) -> Any:
        return (
            self.rng.random(), float(self.mean.result()), self.table.tolist(), self.best, self.names, self.setting,
            self.shared is self.table,
        )  # fmt: skip


@pytest.mark.parametrize("first", [True, False], ids=["ours first", "ours last"])
def test_what_callbacks_remember(first: bool, tmp_path: Path) -> None:
    whole = Remembers()
    fit(model_of(), ours(tmp_path, save_freq=3), whole)
    again = Remembers()
    again.setting = 6
    callback = ours(tmp_path, resume="step=6")
    fit(model_of(), *([callback, again] if first else [again, callback]))
    wanted = list(whole.values())
    wanted[5] = 6  # what did not change is a setting, and the program's to say
    assert list(again.values()) == wanted


def test_a_callback_that_keeps_its_state_itself(tmp_path: Path) -> None:
    class Own(keras.callbacks.Callback):
        def __init__(self) -> None:
            super().__init__()
            self.hidden = {"batches": {1, 2}}

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.hidden["batches"].add(batch + 10)

        def get_state(self) -> Any:
            return sorted(self.hidden["batches"])

        def set_state(self, state: Any) -> None:
            self.hidden["batches"] = set(state)

    whole, again = Own(), Own()
    fit(model_of(), ours(tmp_path, save_freq=3), whole, epochs=1)
    fit(model_of(), ours(tmp_path, resume="step=3"), again, epochs=1)
    assert again.hidden == whole.hidden == {"batches": {1, 2, 10, 11, 12, 13}}


def test_what_cannot_be_saved_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Opaque(keras.callbacks.Callback):
        thing: Any = None

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.thing = object()

    fit(
        model_of(),
        ours(tmp_path, save_freq=1),
        Opaque(),
        keras.callbacks.CSVLogger(str(tmp_path / "log.csv")),
    )
    told = [record.getMessage() for record in caplog.records if "cannot be saved" in record.getMessage()]
    assert len(told) == 1
    assert "Opaque-1.thing has changed" in told[0]


def test_early_stopping_and_its_best_weights(tmp_path: Path) -> None:
    def stopping() -> Any:
        return keras.callbacks.EarlyStopping("loss", patience=1, min_delta=10.0, restore_best_weights=True)

    whole, first = model_of(), stopping()
    history = fit(whole, ours(tmp_path, save_freq=3), first, epochs=9)
    assert history.epoch == [0, 1]
    again, second = model_of(), stopping()
    found = fit(again, ours(tmp_path, resume="step=6"), second, epochs=9)
    assert found.epoch == [0, 1]
    assert bits(again) == bits(whole)
    assert (second.wait, second.best, second.stopped_epoch) == (first.wait, first.best, first.stopped_epoch)
    assert second.min_delta == first.min_delta == -10.0
    third, told = model_of(), Epochs()
    fit(third, ours(tmp_path, resume="latest"), stopping(), told, epochs=9)
    assert told.seen == [], "it was stopped before its time, and that is its end"
    assert bits(third) == bits(whole)


def test_the_callbacks_that_keras_has(tmp_path: Path) -> None:
    def others() -> list[Any]:
        return [
            keras.callbacks.ModelCheckpoint(
                str(tmp_path / "best.keras"), monitor="loss", save_best_only=True
            ),
            keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=10.0, cooldown=1),
            keras.callbacks.LearningRateScheduler(lambda epoch, rate: float(rate * 0.9)),
            keras.callbacks.CSVLogger(str(tmp_path / "log.csv"), append=True),
            keras.callbacks.TerminateOnNaN(),
        ]

    whole, first = model_of(), others()
    fit(whole, ours(tmp_path / "store", save_freq=3), *first, epochs=4)
    for step in (6, 9):
        again, second = model_of(), others()
        fit(again, *second, ours(tmp_path / "store", resume=f"step={step}", save_policy=Never()), epochs=4)
        assert bits(again) == bits(whole), "the learning rate is among them"
        for before, after in zip(first[:2], second[:2], strict=True):
            assert after.best == before.best
        assert (second[1].wait, second[1].cooldown_counter) == (first[1].wait, first[1].cooldown_counter)
    rows = (tmp_path / "log.csv").read_text().splitlines()
    assert [row.partition(",")[0] for row in rows] == ["epoch", *"0123", *"123", *"23"]


def test_events_and_metrics_come_when_the_others_are_done(tmp_path: Path) -> None:
    told: list[tuple[str, int | None, int | None, tuple[str, ...]]] = []

    class Tells(BaseHook):
        events = tuple(HookEvent)

        def execute(self, context: HookContext) -> None:
            told.append((context.event.name, context.step, context.epoch, tuple(sorted(context.metrics))))

    plateau = keras.callbacks.ReduceLROnPlateau("val_loss")
    callback = ours(tmp_path, save_policy=Never(), hooks=[Tells()])
    fit(model_of(), callback, plateau, epochs=1, validation_data=(X, Y), steps_per_epoch=2)
    assert [each for each in told if each[0] in {"TRAIN_BEGIN", "EPOCH_BEGIN", "STEP_END", "EVALUATE_END"}] == [
        ("TRAIN_BEGIN", 0, 0, ()), ("EPOCH_BEGIN", 0, 0, ()), ("STEP_END", 1, 0, ("loss",)), ("STEP_END", 2, 0, ("loss",)),
        ("EVALUATE_END", 2, 0, ("loss", "val_loss")),
    ]  # fmt: skip
    assert ("EPOCH_END", 2, 0, ("learning_rate", "loss", "val_loss")) in told
    names = [each[0] for each in told]
    assert names.index("EPOCH_END") < names.index("TRAIN_END") < names.index("AFTER_SAVE")


def test_the_best_is_the_one_that_was_validated(tmp_path: Path) -> None:
    callback = ours(tmp_path, monitor="val_loss", save_best_only=True)
    history = fit(model_of(), callback, epochs=4, validation_data=(X, Y))
    with CheckpointManager(tmp_path, experiment="fit", metric="val_loss") as manager:
        best = manager.best()
        assert best is not None
        assert best.metrics["val_loss"] == min(history.history["val_loss"])
        assert len(manager.checkpoints()) <= 2


# -- failures -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "calls", "saved"),
    [
        ("on_train_batch_begin", 3, 2),
        ("on_train_batch_begin", 4, 3),
        ("on_train_batch_end", 3, 3),
        ("on_train_batch_end", 4, 2),  # the epoch's end is due, and was not reached
        ("on_epoch_end", 1, 2),
        ("on_test_batch_end", 1, 2),
        ("on_train_end", 1, 8),
    ],
)
def test_the_last_good_state_is_saved(method: str, calls: int, saved: int, tmp_path: Path) -> None:
    whole = model_of()
    fit(whole, validation_data=(X, Y))
    keras.utils.set_random_seed(1)
    failing = Fails(method, calls)
    with pytest.raises(RuntimeError, match="on purpose"):
        fit(model_of(), failing, ours(tmp_path, save_freq=2), validation_data=(X, Y))
    with CheckpointManager(tmp_path, experiment="fit") as manager:
        there = manager.latest()
    assert there is not None
    assert there.step == saved
    keras.utils.set_random_seed(2)
    again, callback = model_of(), ours(tmp_path)
    fit(again, callback, validation_data=(X, Y))
    assert bits(again) == bits(whole)


def test_the_last_good_state_in_a_pass_over_several_epochs(tmp_path: Path) -> None:
    options = {"batch_size": 2, "steps_per_epoch": 3, "epochs": 2}
    whole = model_of()
    fit(whole, **options)
    for calls in (3, 5, 6):
        keras.utils.set_random_seed(1)
        folder = tmp_path / str(calls)
        with pytest.raises(RuntimeError, match="on purpose"):
            fit(
                model_of(), Fails("on_train_batch_begin", calls), ours(folder, save_policy=Never()), **options
            )
        keras.utils.set_random_seed(2)
        again, callback = model_of(), ours(folder)
        fit(again, callback, **options)
        assert callback.resumption is not None
        assert callback.resumption.step == calls - 1
        assert bits(again) == bits(whole)


class Broken(keras.utils.PyDataset):
    def __init__(self, batches: int) -> None:
        super().__init__()
        self.left = batches

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        self.left -= 1
        if self.left == 0:
            raise OSError("a broken file")
        return X[index * 4 : index * 4 + 4], Y[index * 4 : index * 4 + 4]


@pytest.mark.skipif(BACKEND == "tensorflow", reason="it fetches in advance, within the step")
def test_data_that_fails(tmp_path: Path) -> None:
    whole = model_of()
    fit(whole, x=Broken(99), y=None, shuffle=False)
    keras.utils.set_random_seed(1)
    with pytest.raises(OSError, match="a broken file"):
        fit(model_of(), ours(tmp_path, save_policy=Never()), x=Broken(7), y=None, shuffle=False)
    again, callback = model_of(), ours(tmp_path)
    fit(again, callback, x=Broken(99), y=None, shuffle=False)
    assert callback.resumption is not None
    assert callback.resumption.step >= 4
    assert bits(again) == bits(whole)


# -- other models -------------------------------------------------------------------------------------


def test_a_model_made_anew_has_other_paths_and_is_the_same(tmp_path: Path) -> None:
    whole = model_of()
    fit(whole, ours(tmp_path, save_freq=3))
    for _ in range(3):
        keras.layers.Dense(1)
    again = model_of()
    assert again.layers[0].name != whole.layers[0].name
    fit(again, ours(tmp_path, resume="step=6"))
    assert bits(again) == bits(whole)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (
            lambda: model_of(keras.layers.Dense(2, name="first"), keras.layers.Dense(1)),
            "2 weights are saved, and here",
        ),
        (lambda: model_of(keras.layers.Dense(1, use_bias=False)), "2 weights are saved, and here are 1"),
        (lambda: model_of(optimizer="sgd"), "variables of the optimizer are saved"),
        (
            lambda: model_of(keras.layers.Dense(1, dtype="float16")),
            "was saved as float32, and here it is float16",
        ),
        (lambda: model_of(metrics=["mae"]), "2 variables of metrics are saved, and here are 4"),
    ],
    ids=["a layer more", "a weight less", "another optimizer", "another dtype", "another metric"],
)
def test_another_model_is_refused_and_told_apart(other: Any, named: str, tmp_path: Path) -> None:
    fit(model_of(), ours(tmp_path), epochs=1)
    model = other()
    with pytest.raises(StateMismatchError, match=named):
        fit(model, ours(tmp_path))
    assert not isinstance(model.train_function, Guarded)
    fit(model, epochs=1)


def test_a_model_of_ones_own_with_two_optimizers(tmp_path: Path) -> None:
    """A class with a train_step, trained by an optimizer that it was compiled with and one that it keeps itself."""

    class Own(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.hidden = keras.layers.Dense(4, activation="tanh")
            self.dropout = keras.layers.Dropout(0.3, seed=4)
            self.out = keras.layers.Dense(1)
            self.second = keras.optimizers.SGD(0.1, momentum=0.9)

        def call(self, inputs: Any, training: bool = False) -> Any:
            return self.out(self.dropout(self.hidden(inputs), training=training))

    class Trained(Own):
        def train_step(self, *arguments: Any) -> Any:
            found = super().train_step(*arguments)
            if BACKEND != "jax":  # there a step has no side effects
                self.second.apply([variable.value * 0 + 1 for variable in self.out.trainable_variables])
            return found

    def made() -> Any:
        keras.utils.set_random_seed(7)
        model = Trained()
        model.compile(keras.optimizers.Adam(0.01), "mse", metrics=["mae"], run_eagerly=True)
        model(X[:1])
        model.second.build(model.out.trainable_variables)
        return model

    whole = made()
    fit(whole, ours(tmp_path, save_freq=3))
    again = made()
    fit(again, ours(tmp_path, resume="step=6"))
    assert bits(again) == bits(whole)
    seconds = [[host_array(v.value).tobytes() for v in model.second.variables] for model in (whole, again)]
    assert seconds[0] == seconds[1]


def test_a_model_that_is_built_by_its_first_step(tmp_path: Path) -> None:
    def made() -> Any:
        keras.utils.set_random_seed(7)
        model = keras.Sequential([keras.layers.Dense(4), keras.layers.Dropout(0.5), keras.layers.Dense(1)])
        model.compile("adam", "mse", metrics=["mae"], run_eagerly=True)
        return model

    whole = made()
    fit(whole, ours(tmp_path, save_freq=3), class_weight=None)
    again = made()
    fit(again, ours(tmp_path, resume="step=6"))
    assert bits(again) == bits(whole)


def test_averaged_weights(tmp_path: Path) -> None:
    def made() -> Any:
        keras.utils.set_random_seed(7)
        return model_of(optimizer=keras.optimizers.Adam(0.1, use_ema=True, ema_overwrite_frequency=3))

    options = {"epochs": 3, "validation_data": (X, Y)}
    swap, at = keras.callbacks.SwapEMAWeights, {"save_freq": 3, "every_n_epochs": 1}
    whole = made()
    fit(whole, ours(tmp_path, **at), swap(swap_on_epoch=True), **options)
    for step in (4, 6, 8):
        again = made()
        fit(
            again,
            ours(tmp_path, resume=f"step={step}", save_policy=Never()),
            swap(swap_on_epoch=True),
            **options,
        )
        assert bits(again) == bits(whole), f"from step {step}"


def test_class_weights_and_a_split(tmp_path: Path) -> None:
    labels = (Y[:, 0] > 0).astype("float32")

    def made() -> Any:
        keras.utils.set_random_seed(7)
        return model_of(keras.layers.Dense(1, activation="sigmoid"), loss="binary_crossentropy")

    options = {"y": labels, "class_weight": {0: 1.0, 1: 3.0}, "validation_split": 0.25}
    whole = made()
    history = fit(whole, ours(tmp_path, save_freq=2), **options)
    again = made()
    found = fit(again, ours(tmp_path, resume="step=4"), **options)
    assert bits(again) == bits(whole)
    assert found.history == history.history


# -- several callbacks, one store ---------------------------------------------------------------------


def test_two_callbacks_go_on_from_the_one_that_came_further(tmp_path: Path) -> None:
    whole = model_of()
    fit(whole)
    keras.utils.set_random_seed(1)

    def both() -> tuple[CheckpointCallback, CheckpointCallback]:
        return ours(tmp_path, save_policy=EverySteps(2)), ours(
            tmp_path, experiment="other", save_policy=EverySteps(3)
        )

    with pytest.raises(RuntimeError):
        fit(model_of(), *both(), Fails("on_epoch_end", 2))
    first, second = both()
    again = model_of()
    fit(again, first, second)
    assert first.resumption is not None
    assert second.resumption is not None
    assert (first.resumption.step, second.resumption.step) == (6, 6)
    assert bits(again) == bits(whole)
    with CheckpointManager(tmp_path, experiment="other") as manager:
        assert [each.step for each in manager.checkpoints()] == [3, 6, 8]


def test_a_manager_that_is_given_stays_open(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path, experiment="given", metric="loss") as manager:
        callback = CheckpointCallback(manager=manager, save_freq="epoch")
        fit(model_of(), callback, epochs=1)
        assert callback.manager is manager
        manager.save({"a": 1}, step=99).result()
        fit(model_of(), CheckpointCallback(manager=manager, resume=None), epochs=1)
