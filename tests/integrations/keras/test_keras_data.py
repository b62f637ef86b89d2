"""Every kind of data that `fit` takes, gone on with from the midst of an epoch: the same batches, the same weights."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from ckpt_core import CheckpointManager
from ckpt_core.hooks import HookEvent
from ckpt_keras import CheckpointCallback
from ckpt_keras.codec import host_array

pytestmark = [
    # Keras on PyTorch makes numpy warn whenever it turns a tensor into an array.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
    # It says so at the end of all data whose length it does not know.
    pytest.mark.filterwarnings("ignore:Your input ran out of data:UserWarning"),
]
BACKEND = keras.config.backend()
EPOCHS, STEPS, BATCH = 3, 5, 4
X = np.random.default_rng(0).normal(size=(STEPS * BATCH, 3)).astype("float32")
Y = (X.sum(1, keepdims=True) + 0.5).astype("float32")
GLOBAL = np.random.default_rng(4)


class Batches(keras.utils.PyDataset):
    """Draws from everything there is to draw from, and shuffles by itself."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.order = np.arange(len(X))
        self.rng = np.random.default_rng(1)
        self.legacy = random.Random(2)
        self.seeds = keras.random.SeedGenerator(5)
        self.calls = 0

    def __len__(self) -> int:
        return STEPS

    def __getitem__(self, index: int) -> Any:
        self.calls += 1
        chosen = self.order[index * BATCH : (index + 1) * BATCH]
        mask = np.random.random(X[chosen].shape) > 0.2
        drawn = [self.rng.random(), self.legacy.random(), random.random(), GLOBAL.random()]
        drawn.append(float(keras.random.uniform((), seed=self.seeds)))
        return (X[chosen] * mask + sum(drawn) + self.calls / 10).astype("float32"), Y[chosen]

    def on_epoch_end(self) -> None:
        self.order = np.random.permutation(self.order)


class Remembering(Batches):
    """Mixes in what it gave before: only all of it over again can bring that back."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.given: list[Any] = []

    def on_epoch_begin(self) -> None:
        self.given.clear()

    def __getitem__(self, index: int) -> Any:
        images, targets = super().__getitem__(index)
        self.given.append(images)
        return images + self.given[np.random.randint(len(self.given))], targets


class Indexed(Batches):
    """What a batch draws depends on its number alone, as it should with worker threads."""

    def __getitem__(self, index: int) -> Any:
        noise = np.random.default_rng(index).normal(size=(BATCH, 3))
        chosen = self.order[index * BATCH : (index + 1) * BATCH]
        return (X[chosen] + noise).astype("float32"), Y[chosen]


class Endless(Batches):
    @property
    def num_batches(self) -> int | None:
        return None

    def on_epoch_end(self) -> None:
        """Where there is no end, data is fetched from the next epoch already."""

    def __getitem__(self, index: int) -> Any:
        return super().__getitem__(index % STEPS)


def stream(length: int | None = None) -> Any:
    """A generator with a generator of its own that also draws from the global one."""
    rng, given = np.random.default_rng(6), 0
    while length is None or given < length:
        given += 1
        chosen = rng.integers(len(X), size=BATCH)
        yield (X[chosen] + 0.1 * np.random.random() + 0.1 * random.random()).astype("float32"), Y[chosen]


class Noisy(keras.callbacks.Callback):
    """Draws between the batches from where the data draws, and keeps the loss of each batch: a resume gives it back
    those of the batches before."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[Any] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        # On TensorFlow data is fetched beside the training: to draw from the same would be a matter of chance.
        drawn = [random.random(), np.random.random()] if BACKEND != "tensorflow" else []
        self.losses.append((batch, logs["loss"], *drawn, float(keras.random.uniform(()))))


def model_of(**options: Any) -> Any:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dropout(0.2), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(0.01), "mse", **{"run_eagerly": True, **options})
    return model


@dataclass(frozen=True)
class At:
    """A policy: at these steps."""

    steps: tuple[int, ...]

    def wants(self, progress: Any) -> str | None:
        last = progress.event in (HookEvent.STEP_END, HookEvent.EPOCH_END)
        return "asked for" if last and progress.step in self.steps else None


def fit(
    folder: Path,
    data: Callable[[], dict[str, Any]],
    *,
    resume: int | None = None,
    save: tuple[int, ...] = (),
    compiled: Any = None,
    **more: Any,
) -> tuple[Any, Noisy]:
    """One training of its own, as a new process would make it; one that resumes begins with other seeds."""
    global GLOBAL
    keras.utils.set_random_seed(3)
    GLOBAL = np.random.default_rng(4)
    model, arguments = model_of(**(compiled or {})), data()
    if resume is not None and not isinstance(
        arguments["x"], type(stream())
    ):  # what it drew cannot be taken back
        random.seed(17)
        np.random.seed(18)
    noisy = Noisy()
    options = {"epochs": EPOCHS, "verbose": 0, **arguments, **more}
    callback = CheckpointCallback(
        folder, experiment="data", save_policy=At(save), resume=resume and f"step={resume}"
    )
    model.fit(**options, callbacks=[callback, noisy])
    assert callback.resumption is not None
    assert callback.resumption.step == (resume or 0)
    return model, noisy


def bits(model: Any) -> list[bytes]:
    variables = [*model.variables, *model.optimizer.variables]
    return [host_array(variable.value).tobytes() for variable in variables]


def assert_exact(
    folder: Path, data: Callable[[], dict[str, Any]], steps: tuple[int, ...] = (2, 5, 14), **options: Any
) -> None:
    """Gone on with from each of these steps, the training is the one that was not interrupted."""
    whole, seen = fit(folder, data, save=steps, **options)
    for step in steps:
        model, again = fit(folder, data, resume=step, **options)
        assert again.losses == seen.losses, f"from step {step}"
        assert bits(model) == bits(whole), f"from step {step}"


DATA: dict[str, Callable[[], dict[str, Any]]] = {
    "arrays": lambda: {"x": X, "y": Y, "batch_size": BATCH},
    "arrays, shuffled in batches": lambda: {"x": X, "y": Y, "batch_size": BATCH, "shuffle": "batch"},
    "arrays over several epochs": lambda: {"x": X, "y": Y, "batch_size": 2, "steps_per_epoch": 3},
    "weighted arrays": lambda: {"x": X, "y": Y, "batch_size": BATCH, "sample_weight": np.arange(len(X)) / 9},
    "dataset": lambda: {"x": Batches()},
    "dataset that remembers": lambda: {"x": Remembering()},
    "dataset with threads": lambda: {"x": Indexed(workers=2)},
    "endless dataset": lambda: {"x": Endless(), "steps_per_epoch": STEPS, "shuffle": False},
    "generator": lambda: {"x": stream(), "steps_per_epoch": STEPS, "shuffle": False},
}


def loader(stream_of_samples: bool = False) -> Any:
    """A loader of PyTorch's that draws masks; or one whose length nobody knows."""
    import torch

    class Stream(torch.utils.data.IterableDataset[Any]):
        def __iter__(self) -> Any:
            for index in torch.randperm(len(X)).tolist():
                yield torch.tensor(X[index]) + torch.rand(()), torch.tensor(Y[index])

    def masked(samples: Any) -> Any:
        images, targets = torch.utils.data.default_collate(samples)
        return images * (torch.rand(images.shape) > 0.2) + random.random(), targets

    if stream_of_samples:
        return torch.utils.data.DataLoader(Stream(), BATCH)
    data = torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(Y))
    return torch.utils.data.DataLoader(data, BATCH, shuffle=True, collate_fn=masked)


def pipeline(known: bool = True) -> Any:
    """A tf.data pipeline that shuffles and draws masks; or one whose length nobody knows."""
    import tensorflow as tf

    def masked(image: Any, target: Any) -> Any:
        return image * tf.cast(tf.random.uniform(tf.shape(image)) > 0.2, image.dtype), target

    data = tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(9).batch(BATCH).map(masked).prefetch(2)
    return data if known else data.filter(lambda image, target: True)


if BACKEND == "torch":
    DATA["loader"] = lambda: {"x": loader(), "shuffle": False}
    DATA["loader without a length"] = lambda: {"x": loader(True), "shuffle": False}
if BACKEND == "tensorflow":
    DATA["pipeline"] = lambda: {"x": pipeline(), "shuffle": False}


@pytest.mark.parametrize("kind", DATA)
def test_every_kind_of_data(kind: str, tmp_path: Path) -> None:
    steps = (2, 3, 7) if kind == "arrays over several epochs" else (2, 5, 14)
    assert_exact(tmp_path, DATA[kind], steps)


@pytest.mark.parametrize("resume_data", ["skip", "replay"])
def test_the_way_that_is_asked_for(
    resume_data: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Fetching all again is exact, too, for what could be skipped."""
    caplog.set_level(logging.INFO)
    whole, _ = fit(tmp_path, DATA["dataset"], save=(8,))
    keras.utils.set_random_seed(9)
    model = model_of()
    callback = CheckpointCallback(tmp_path, experiment="data", resume="step=8", resume_data=resume_data)
    model.fit(Batches(), epochs=EPOCHS, verbose=0, callbacks=[callback, Noisy()])
    assert bits(model) == bits(whole)
    how = "skipping to" if resume_data == "skip" else "fetching again and dropping"
    assert f"going to batch 3 by {how} it" in caplog.text


@pytest.mark.skipif(BACKEND == "torch", reason="Keras has no steps_per_execution on PyTorch")
def test_steps_that_run_together(tmp_path: Path) -> None:
    options = {"run_eagerly": False, "steps_per_execution": 2, "jit_compile": BACKEND == "jax"}
    assert_exact(tmp_path, DATA["arrays"], (4, 5, 7), compiled=options)


@pytest.mark.skipif(
    BACKEND == "tensorflow", reason="there a batch cannot be looked at before the step takes it"
)
def test_in_the_first_pass_over_data_without_a_length(tmp_path: Path) -> None:
    assert_exact(tmp_path, lambda: {"x": stream(7), "shuffle": False}, (2, 6), epochs=1)


def test_a_generator_that_is_exhausted(tmp_path: Path) -> None:
    """Of its second pass Keras gets the first two batches again, which it has kept, and no more."""
    assert_exact(tmp_path, lambda: {"x": stream(STEPS), "shuffle": False}, (STEPS + 1,), epochs=2)


@pytest.mark.skipif(
    BACKEND == "tensorflow", reason="there a batch cannot be looked at before the step takes it"
)
def test_the_last_batch_of_data_without_a_length_is_the_epochs_end(tmp_path: Path) -> None:
    """A save that is due after it waits for the evaluation, as anywhere else."""
    fit(tmp_path, lambda: {"x": stream(4), "shuffle": False}, save=(4,), epochs=1)
    with CheckpointManager(tmp_path, experiment="data") as manager:
        assert [manager.load(each.id)["loop"]["boundary"] for each in manager.checkpoints()] == ["epoch"]


@pytest.mark.skipif(BACKEND != "tensorflow", reason="of tf.data")
def test_a_pipeline_without_a_length(tmp_path: Path) -> None:
    """In its first pass nobody knows which batch is the last: saves wait for the epoch's end."""
    assert_exact(tmp_path, lambda: {"x": pipeline(known=False), "shuffle": False}, (5, 7, 14))
    _, _ = fit(
        tmp_path / "first", lambda: {"x": pipeline(known=False), "shuffle": False}, save=(2,), epochs=1
    )
    with CheckpointManager(tmp_path / "first", experiment="data") as manager:
        assert [each.step for each in manager.checkpoints()] == [5]


@pytest.mark.skipif(BACKEND != "tensorflow", reason="of tf.data")
def test_arrays_that_tensorflow_shuffles_without_a_seed(tmp_path: Path) -> None:
    import tensorflow as tf

    def train(**options: Any) -> tuple[Any, Noisy]:
        model, noisy = model_of(), Noisy()
        if options:
            model.set_weights([np.ones((3, 1)), np.zeros(1)])
        callback = CheckpointCallback(tmp_path, experiment="data", save_policy=At((2, 7)), **options)
        model.fit(X, Y, batch_size=BATCH, epochs=EPOCHS, verbose=0, callbacks=[callback, noisy])
        return model, noisy

    tf.random.set_seed(None)
    whole, seen = train()
    for step in (2, 7):
        again, seen_again = train(resume=f"step={step}")
        assert seen_again.losses == seen.losses
        assert bits(again) == bits(whole)
    assert len({loss for _, loss, *_ in seen.losses}) == EPOCHS * STEPS


@pytest.mark.skipif(BACKEND != "tensorflow", reason="of tf.data")
def test_doubts_about_a_pipeline(caplog: pytest.LogCaptureFixture) -> None:
    import tensorflow as tf

    from ckpt_keras.pipeline import doubts

    tf.random.set_seed(None)
    plain = tf.data.Dataset.from_tensor_slices(X)
    unseeded = plain.shuffle(9)

    def noise(x: Any) -> Any:
        return x + tf.random.uniform(())

    assert doubts(plain.batch(2).prefetch(1)) == []
    assert "ShuffleDataset has no seed" in doubts(unseeded)[0]
    assert doubts(plain.shuffle(9, seed=3)) == []
    assert "keeps a shuffled order in a cache" in doubts(plain.shuffle(9, seed=3).cache())[0]
    assert doubts(plain.cache().shuffle(9, seed=3)) == []
    assert "RandomUniform in MapDataset has no seed" in doubts(plain.map(noise))[0]
    tf.random.set_seed(1)
    assert doubts(plain.map(noise)) == []
    assert "draws in an order that is chance" in doubts(plain.map(noise, num_parallel_calls=2))[0]
    generated = tf.data.Dataset.from_generator(
        lambda: iter([1, 2]), output_signature=tf.TensorSpec((), tf.int32)
    )
    assert "runs Python code" in doubts(generated)[0]
    options = tf.data.Options()
    options.deterministic = False
    assert "not deterministic" in doubts(plain.with_options(options))[0]


def test_worker_threads_that_share_a_generator_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fit(tmp_path, lambda: {"x": Batches(workers=2)}, epochs=1)
    told = [record.getMessage() for record in caplog.records if "worker threads share" in record.getMessage()]
    assert len(told) == 1
    assert "Batches" in told[0]
    assert "numpy" in told[0]


def test_a_generator_that_does_not_begin_as_it_did_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fit(tmp_path, DATA["generator"], save=(2,))
    model, other = model_of(), np.random.default_rng(99)

    def different() -> Any:
        while True:
            yield X[other.integers(len(X), size=BATCH)], Y[:BATCH]

    callback = CheckpointCallback(tmp_path, experiment="data", resume="step=2", save_policy=At(()))
    model.fit(different(), epochs=1, steps_per_epoch=STEPS, shuffle=False, verbose=0, callbacks=[callback])
    assert "does not begin as it did" in caplog.text


def test_what_validation_data_draws(tmp_path: Path) -> None:
    """Its own generators go on from one evaluation to the next."""

    def history(resume: str | None) -> Any:
        global GLOBAL
        keras.utils.set_random_seed(3)
        GLOBAL = np.random.default_rng(4)
        callback = CheckpointCallback(tmp_path, experiment="data", resume=resume, save_policy=At((5,)))
        options = {"batch_size": BATCH, "validation_data": Batches(), "verbose": 0, "callbacks": [callback]}
        return model_of().fit(X, Y, epochs=EPOCHS, **options).history

    whole = history(None)
    assert len(set(whole["val_loss"])) == EPOCHS
    assert history("step=5") == whole


@pytest.mark.skipif(BACKEND != "jax", reason="of JAX on accelerators")
@pytest.mark.parametrize("kind", ["arrays", "dataset", "arrays over several epochs", "data without a length"])
def test_a_batch_ahead_as_on_an_accelerator(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There each batch is on its way to the device while the one before it is trained on."""
    from keras.src.backend.jax.trainer import JAXEpochIterator

    def ahead(self: Any) -> Any:
        return self._one_batch_ahead_iterator(self.data_adapter.get_jax_iterator())

    monkeypatch.setattr(JAXEpochIterator, "_get_iterator", ahead)
    monkeypatch.setattr("ckpt_keras.sources._lookahead", lambda: True)
    if kind == "data without a length":
        assert_exact(tmp_path, lambda: {"x": stream(7), "shuffle": False}, (2, 6), epochs=1)
    else:
        assert_exact(
            tmp_path, DATA[kind], (2, 3, 7) if kind == "arrays over several epochs" else (2, 4, 5, 9)
        )
