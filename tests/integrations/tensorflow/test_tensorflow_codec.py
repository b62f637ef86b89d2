"""TensorFlow's variables, tensors and modules in a state: every dtype, filled in place, misses named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from ckpt_core import CheckpointManager, StateError, StateMismatchError
from ckpt_tensorflow import load_weights, variables_of

RARE = tf.dtypes.experimental
DTYPES = [
    tf.bool, tf.uint8, tf.int8, tf.uint16, tf.int16, tf.uint32, tf.int32, tf.uint64, tf.int64, tf.float16,
    tf.bfloat16, tf.float32, tf.float64, tf.complex64, tf.complex128, RARE.float8_e4m3fn, RARE.float8_e5m2,
    RARE.int4, RARE.uint4,
]  # fmt: skip


@pytest.fixture
def manager(tmp_path: Path) -> Any:
    with CheckpointManager(tmp_path / "store", experiment="test", metric="loss") as manager:
        yield manager


def save(manager: CheckpointManager, state: Any) -> None:
    manager.save(state, step=1, metrics={"loss": 1.0}).result()


def values(dtype: Any, shape: tuple[int, ...] = (3, 2)) -> Any:
    """Numbers that fill the range of the dtype, as an array."""
    bits = np.random.default_rng(1).integers(0, 256, 16 * int(np.prod(shape)), dtype=np.uint8)
    kind = np.dtype(dtype.as_numpy_dtype)
    if dtype in (tf.bool, RARE.int4, RARE.uint4):
        return (bits[: int(np.prod(shape))] % (2 if dtype == tf.bool else 7)).astype(kind).reshape(shape)
    array = bits[: int(np.prod(shape)) * kind.itemsize].view(kind).reshape(shape)
    return array if dtype.is_integer else np.where(array == array, array, array.dtype.type(1))  # no NaNs


def same(one: Any, two: Any) -> bool:
    one, two = np.asarray(one), np.asarray(two)
    return one.dtype == two.dtype and one.shape == two.shape and one.tobytes() == two.tobytes()


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("shape", [(3, 2), (), (0, 3)], ids=str)
def test_every_dtype_comes_back(manager: CheckpointManager, dtype: Any, shape: tuple[int, ...]) -> None:
    array = values(dtype, shape)
    save(manager, {"tensor": tf.constant(array), "variable": tf.Variable(array)})
    state = manager.load()
    for name in ("tensor", "variable"):
        assert isinstance(state[name], tf.Tensor)
        assert state[name].dtype == dtype
        assert same(state[name].numpy(), array)

    variable, tensor = (make(np.zeros(shape, dtype.as_numpy_dtype)) for make in (tf.Variable, tf.constant))
    state = manager.load(like={"tensor": tensor, "variable": variable})
    assert state["variable"] is variable
    assert same(variable.numpy(), array)
    assert same(state["tensor"].numpy(), array)
    assert not np.asarray(tensor.numpy()).any(), "tensors cannot be changed"


@pytest.mark.parametrize("dtype", [RARE.float8_e4m3fnuz, RARE.float8_e5m2fnuz, RARE.float4_e2m1fn])
def test_dtypes_that_only_tensors_have(manager: CheckpointManager, dtype: Any) -> None:
    array = np.arange(6).astype(dtype.as_numpy_dtype).reshape(2, 3)
    save(manager, {"a": tf.constant(array)})
    state = manager.load()
    assert state["a"].dtype == dtype
    assert same(state["a"].numpy(), array)


def test_dates_are_no_tensors(manager: CheckpointManager) -> None:
    save(manager, {"a": np.array(["2020-01-01"], "datetime64[D]")})
    with pytest.raises(StateMismatchError, match='framework="numpy"'):
        manager.load(framework="tensorflow")


def test_another_dtype_of_the_same_family(manager: CheckpointManager) -> None:
    save(manager, {"f": tf.constant([1.5, 1 / 3]), "i": tf.constant([300, 2], tf.int64)})
    like = {"f": tf.Variable([0, 0], dtype=tf.bfloat16), "i": tf.Variable([0, 0], dtype=tf.int16)}
    manager.load(like=like)
    assert like["f"].dtype == tf.bfloat16
    assert same(like["f"].numpy(), tf.cast([1.5, 1 / 3], tf.bfloat16).numpy())
    assert like["i"].numpy().tolist() == [300, 2]
    with pytest.raises(StateMismatchError, match="i: its values do not fit in int8"):
        manager.load(like=like | {"i": tf.Variable([0, 0], dtype=tf.int8)})
    with pytest.raises(StateMismatchError, match="saved as F32, like= has I32"):
        manager.load(like=like | {"f": tf.Variable([0, 0])})
    with pytest.raises(StateMismatchError, match=r"saved with shape \[2\], like= has \[3\]"):
        manager.load(like=like | {"f": tf.Variable([0.0, 0, 0])})


def test_a_save_is_of_the_moment_it_was_asked_for(manager: CheckpointManager) -> None:
    variable, tensor = tf.Variable(tf.ones(100_000)), tf.ones(100_000)
    handle = manager.save({"v": variable, "t": tensor}, step=1)
    variable.assign_add(tf.ones(100_000))
    variable.scatter_nd_update([[0]], [7.0])
    handle.result()
    state = manager.load()
    assert np.asarray(state["v"]).min() == np.asarray(state["v"]).max() == 1.0


def test_a_variable_under_two_names_is_stored_once(manager: CheckpointManager) -> None:
    variable = tf.Variable(tf.ones(1000))
    save(manager, {"a": variable, "b": variable})
    assert manager.latest().logical_bytes == 4000  # type: ignore[union-attr]
    with manager.open("latest") as reader:
        assert len(reader.manifest.tensors) == 1


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (lambda: tf.constant(["text"]), r"a tensor of strings has no bytes of fixed size: save value.numpy\(\)"),
        (lambda: tf.Variable(["text"]), "a tensor of strings"),
        (lambda: tf.quantization.quantize([1.0], 0.0, 2.0, tf.qint8).output, "a quantized tensor"),
        (lambda: tf.raw_ops.VarHandleOp(dtype=tf.float32, shape=[]), "is a handle"),
        (lambda: iter(tf.data.Dataset.range(3)), r"it is a OwnedIterator, .*how far it has come, and skip\(\)"),
        (lambda: tf.data.Dataset.range(3), r"a dataset has no state: .* skip\(\)"),
        (lambda: tf.lookup.experimental.MutableHashTable(tf.int64, tf.int64, 0), r"export\(\)"),
    ],
)  # fmt: skip
def test_what_cannot_be_saved_is_named(manager: CheckpointManager, value: Any, words: str) -> None:
    with pytest.raises(StateError, match=f"cannot save 'parts/0': .*{words}") as error:
        manager.save({"parts": [value()]}, step=1)
    assert error.value.path == "parts/0"


def test_nothing_is_saved_inside_of_a_graph(manager: CheckpointManager) -> None:
    variable = tf.Variable(1.0)

    @tf.function
    def step(value: Any) -> Any:
        for each in (value, variable):
            with pytest.raises(StateError, match=r"cannot save 'x': it is symbolic .*outside of tf.function"):
                manager.save({"x": each}, step=1)
        return value

    step(tf.constant(1.0))


def test_composites(manager: CheckpointManager) -> None:
    sparse = tf.SparseTensor([[0, 1]], tf.constant([2.0]), [2, 2])
    ragged = tf.ragged.constant([[1], [2, 3], []])
    slices = tf.IndexedSlices(tf.ones((1, 2)), tf.constant([3]))
    save(
        manager,
        {
            "sparse": sparse,
            "ragged": ragged,
            "slices": slices,
            "dtype": tf.bfloat16,
            "shape": tf.TensorShape([None, 2]),
        },
    )
    state = manager.load()
    assert same(tf.sparse.to_dense(state["sparse"]), tf.sparse.to_dense(sparse))
    assert state["ragged"].to_list() == ragged.to_list()
    assert state["slices"].indices.numpy().tolist() == [3]
    assert state["dtype"] == tf.bfloat16
    assert state["shape"].as_list() == [None, 2]


class Layer(tf.Module):
    def __init__(self, value: float, rows: int = 2) -> None:
        super().__init__()
        self.w = tf.Variable(tf.fill([rows, 3], value), name="w")
        self.b = tf.Variable(value, name="b")


class Net(tf.Module):
    """Layers in a list and a dict, a variable under two names, a generator, and a reference to itself."""

    def __init__(self, value: float, rows: int = 2, layers: int = 2) -> None:
        super().__init__()
        self.layers = [Layer(value), Layer(value + 1, rows)][:layers]
        self.heads = {"a": Layer(value + 2)}
        self.tied = self.layers[0].w
        self.rng = tf.random.Generator.from_seed(round(value))
        self.me = self
        self.width = 3

    def bits(self) -> list[bytes]:
        return [np.asarray(each).tobytes() for each in (*self.variables, self.rng.state)]


PATHS = [
    "layers/0/w",
    "layers/0/b",
    "layers/1/w",
    "layers/1/b",
    "heads/a/w",
    "heads/a/b",
    "tied",
    "rng/philox",
]


def test_a_module_is_its_variables_by_attribute_and_is_filled_in_place(manager: CheckpointManager) -> None:
    source, target = Net(1.0), Net(5.0)
    save(manager, {"model": source, "step": 3})
    with manager.open("latest") as reader:
        assert {path.removeprefix("model/") for path in reader.tensors()} == set(PATHS)
        assert len(reader.manifest.tensors) == len(PATHS) - 1, "what is tied is stored once"
    source.rng.normal([2])
    before = list(target.variables)
    state = manager.load(like={"model": target, "step": 0})
    assert state["model"] is target
    assert state["step"] == 3
    assert target.bits() == Net(1.0).bits()
    assert all(now is then for now, then in zip(target.variables, before, strict=True))
    drawn = Net(1.0).rng.normal([4])
    assert same(target.rng.normal([4]), drawn)
    plain = manager.load(framework="numpy")["model"]
    assert plain["layers"]["1"]["b"] == 2.0


def test_checkpoints_and_optimizers_of_tensorflow(manager: CheckpointManager) -> None:
    def make(value: float) -> Any:
        net = Layer(value)
        optimizer = tf.compat.v1.train.AdamOptimizer(0.1)
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(net.w * net.w) + net.b
        variables = [net.w, net.b]
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return tf.train.Checkpoint(net=net, optimizer=optimizer, step=tf.Variable(round(value)))

    source, target = make(2.0), make(9.0)
    save(manager, source)
    assert manager.load(like=target) is target
    for one, two in zip(source.optimizer.variables(), target.optimizer.variables(), strict=True):
        assert same(one.numpy(), two.numpy())
    assert len(source.optimizer.variables()) == 6
    assert target.step.numpy() == 2
    assert same(target.net.w.numpy(), source.net.w.numpy())


def test_every_miss_is_an_error(manager: CheckpointManager) -> None:
    save(manager, {"model": Net(1.0)})
    more, fewer, other = Net(1.0), Net(1.0, layers=1), Net(1.0)
    more.extra = tf.Variable(1.0)
    del fewer.tied
    other.rng = tf.random.Generator.from_seed(1, alg="threefry")
    for net, paths in (
        (more, {"model/extra"}),
        (fewer, {"model/tied", "model/layers/1"}),
        (other, {"model/rng/philox", "model/rng/threefry"}),
    ):
        before = net.bits()
        with pytest.raises(StateMismatchError) as error:
            manager.load(like={"model": net})
        assert {each.removesuffix("/w").removesuffix("/b") for each in error.value.paths} == paths
        assert net.bits() == before


def test_a_list_that_was_shortened_is_named(manager: CheckpointManager) -> None:
    net = Net(1.0)
    net.layers.pop()
    with pytest.raises(
        StateError, match="cannot save 'model': layers cannot be saved: Unable to save the object List"
    ):
        manager.save({"model": net}, step=1)


def test_what_a_module_hides_is_no_silent_loss() -> None:
    net = Layer(1.0)
    object.__setattr__(net, "hidden", [tf.Variable(3.0, name="mine")])
    with pytest.raises(
        Exception, match=r"its variables mine:0 are where TensorFlow's own checkpoints do not find"
    ):
        variables_of(net)


def test_iterators_inside_of_a_module_are_named(manager: CheckpointManager) -> None:
    net = Layer(1.0)
    net.feed = iter(tf.data.Dataset.range(3))
    with pytest.raises(StateError, match="cannot save 'model': feed is a OwnedIterator"):
        manager.save({"model": net}, step=1)


def test_weights_for_a_model_that_has_changed(manager: CheckpointManager) -> None:
    source = Net(1.0)
    save(manager, {"model": source, "optimizer": Layer(3.0)})
    with CheckpointManager(
        manager.workspace.repository.store.url, experiment="other", metric="loss"
    ) as other:
        assert load_weights(Net(4.0), other, "test@best").ok
    with pytest.raises(StateMismatchError) as error:
        load_weights(Net(4.0, rows=5), manager)
    assert error.value.paths == ("layers/1/w",)

    changed = Net(4.0, rows=5)
    changed.trunk = changed.layers
    del changed.layers, changed.tied
    before = changed.trunk[1].w.numpy()
    report = load_weights(
        changed, manager, strict=False, renames={"layers": "trunk", "tied": None, "rng": None}
    )
    assert report.misshapen == (("trunk/1/w", (2, 3), (5, 3)),)
    assert report.missing == ("rng/philox",)
    assert set(report.left_out) == {"tied", "rng/philox"}
    assert same(changed.trunk[0].w.numpy(), source.layers[0].w.numpy())
    assert same(changed.trunk[1].w.numpy(), before)
