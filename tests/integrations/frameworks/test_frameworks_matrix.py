"""What one framework saved, another loads: every dtype and layout exactly, or an error that says what is missing."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import keras
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
import torch
from torch import nn

from ckpt_core import CheckpointManager, StateMismatchError

DOCUMENT = Path(__file__).parents[3] / "docs" / "frameworks.md"
DTYPES = [
    "bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "bfloat16",
    "float32", "float64", "complex64", "complex128", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz",
    "float8_e5m2fnuz", "float8_e8m0fnu", "int4", "uint4", "float4_e2m1fn",
]  # fmt: skip
LACKS = {
    "torch": frozenset({"int4", "uint4"}),
    "jax": frozenset[str](),
    "tensorflow": frozenset({"float8_e8m0fnu"}),
    "numpy": frozenset[str](),
}
KERAS_LACKS = {"float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu", "int4", "uint4", "float4_e2m1fn"}
"""What no variable of Keras can be. Loaded by `framework="keras"` these come as all others do, as numpy arrays."""
WIDE = {"uint64", "int64", "float64", "complex128"}


def dtype_of(name: str) -> np.dtype[Any]:
    return np.dtype(getattr(ml_dtypes, name)) if hasattr(ml_dtypes, name) else np.dtype(name)


def values(name: str, shape: tuple[int, ...]) -> Any:
    """Numbers all over the range of a dtype, the same at each call."""
    dtype, size = dtype_of(name), int(np.prod(shape))
    rng = np.random.default_rng(size)
    if name == "bool" or "4" in name[-3:] or name.startswith("float4"):
        return rng.integers(0, 2 if name == "bool" else 7, size).astype(dtype).reshape(shape)
    if dtype.kind in "iu":
        return rng.integers(0, 256, size * dtype.itemsize, np.uint8).view(dtype).reshape(shape)
    numbers = rng.normal(size=size) + (1j * rng.normal(size=size) if dtype.kind == "c" else 0)
    return (np.abs(numbers) if name == "float8_e8m0fnu" else numbers).astype(dtype).reshape(shape)


@dataclass(frozen=True)
class Framework:
    """How to make a value of it from an array, and how to look at one."""

    name: str
    make: Callable[[Any], Any]
    host: Callable[[Any], Any]
    lacks: frozenset[str]

    def layouts(self, name: str) -> Iterator[tuple[str, Any, Any]]:
        """(name, value, what it holds) in every layout that this framework has."""
        for layout, change in LAYOUTS.items():
            if name == "float4_e2m1fn" and layout == "0-d":
                continue  # torch counts pairs along an axis
            shape = {"0-d": (), "empty": (0, 2)}.get(layout, (4, 6))
            array = values(name, shape)
            value = self.make(array)
            if layout in ("0-d", "empty", "plain"):
                yield layout, value, array
            elif self.name == "numpy" or (
                self.name == "torch" and layout != "reversed" and not name.startswith("float4")
            ):
                yield layout, change(value), change(array)


LAYOUTS: dict[str, Callable[[Any], Any]] = {
    "plain": lambda value: value,
    "0-d": lambda value: value,
    "empty": lambda value: value,
    "transposed": lambda value: value.T,
    "strided": lambda value: value[::2, 1::3],
    "shifted": lambda value: value[1:],
    "reversed": lambda value: value[::-1],
}


def to_torch(array: Any) -> torch.Tensor:
    array = np.ascontiguousarray(array).reshape(array.shape)
    if array.dtype == ml_dtypes.float4_e2m1fn:  # two in a byte, and a shape that counts bytes
        bits = array.view(np.uint8)
        return torch.from_numpy(bits[..., 0::2] | bits[..., 1::2] << 4).view(torch.float4_e2m1fn_x2)
    if array.dtype.type.__module__ != "ml_dtypes":
        return torch.from_numpy(array.copy())
    bits = torch.from_numpy(array.view(f"u{array.itemsize}").copy())
    return bits.view(getattr(torch, array.dtype.name))


def from_torch(tensor: torch.Tensor) -> Any:
    tensor = tensor.detach().clone(memory_format=torch.contiguous_format)
    name = str(tensor.dtype).removeprefix("torch.")
    if name == "float4_e2m1fn_x2":
        pairs = tensor.view(torch.uint8).numpy()
        shape = (*pairs.shape[:-1], 2 * pairs.shape[-1])
        return np.stack([pairs & 15, pairs >> 4], -1).reshape(shape).view(ml_dtypes.float4_e2m1fn)
    dtype = dtype_of(name)
    if dtype.type.__module__ != "ml_dtypes":
        return tensor.numpy()
    return tensor.view(getattr(torch, f"uint{8 * dtype.itemsize}")).numpy().view(dtype)


def to_jax(array: Any) -> Any:
    with jax.enable_x64(True):
        return jax.device_put(array)


def to_keras(array: Any) -> Any:
    return keras.Variable(array, dtype=array.dtype.name, trainable=False)


def from_keras(value: Any) -> Any:
    held = value if isinstance(value, np.ndarray) else value.value
    if isinstance(held, torch.Tensor):
        return from_torch(held)
    return held.numpy() if isinstance(held, tf.Variable) else np.asarray(held)


def to_tensorflow(array: Any) -> Any:
    only_tensors = {"float8_e4m3fnuz", "float8_e5m2fnuz", "float4_e2m1fn"}  # no variables
    return tf.constant(array) if array.dtype.name in only_tensors else tf.Variable(array)


def keras_lacks() -> frozenset[str]:
    """Without x64, a variable of 64 bits on JAX holds 32; on torch, others hold what is wider."""
    more = {"jax": WIDE, "torch": {"uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2"}}
    return frozenset(KERAS_LACKS | more.get(keras.backend.backend(), set()))


FRAMEWORKS = {
    each.name: each
    for each in (
        Framework("torch", to_torch, from_torch, LACKS["torch"]),
        Framework("jax", to_jax, np.asarray, LACKS["jax"]),
        Framework("keras", to_keras, from_keras, keras_lacks()),
        Framework("tensorflow", to_tensorflow, lambda value: value.numpy(), LACKS["tensorflow"]),
        Framework("numpy", np.array, np.asarray, LACKS["numpy"]),
    )
}


def same(framework: Framework, value: Any, wanted: Any) -> bool:
    host = np.asarray(framework.host(value))
    return host.dtype == wanted.dtype and host.shape == wanted.shape and host.tobytes() == wanted.tobytes()


@dataclass(frozen=True)
class Saved:
    manager: CheckpointManager
    wanted: dict[str, Any]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Saved]]:
    """Every dtype in every layout, saved from each framework."""
    made_stores: dict[str, Saved] = {}
    for name, framework in FRAMEWORKS.items():
        manager = CheckpointManager(tmp_path_factory.mktemp(name) / "store", experiment=name)
        state: dict[str, Any] = {}
        wanted: dict[str, Any] = {}
        for dtype in DTYPES:
            if dtype in framework.lacks:
                continue
            for layout, value, array in framework.layouts(dtype):
                state[f"{dtype} {layout}"], wanted[f"{dtype} {layout}"] = value, array
        manager.save(state, step=1).result()
        made_stores[name] = Saved(manager, wanted)
    yield made_stores
    for saved in made_stores.values():
        saved.manager.close()


def split(saved: Saved, lacks: frozenset[str]) -> tuple[list[str], list[str]]:
    there = [key for key in saved.wanted if key.split()[0] not in lacks]
    return there, [key for key in saved.wanted if key.split()[0] in lacks]


@pytest.mark.parametrize("target", FRAMEWORKS)
@pytest.mark.parametrize("source", FRAMEWORKS)
def test_loaded_as_arrays_of_another_framework(stores: dict[str, Saved], source: str, target: str) -> None:
    saved, framework = stores[source], FRAMEWORKS[target]
    there, absent = split(saved, frozenset() if target == "keras" else framework.lacks)
    assert len(there) > 20
    state = saved.manager.load(include=there, framework=target)
    for key in there:
        assert same(framework, state[key], saved.wanted[key]), key
    for key in absent:
        with pytest.raises(StateMismatchError, match=r'has no .*: load this tensor .* framework="numpy"'):
            saved.manager.load(include=key, framework=target)


@pytest.mark.parametrize("target", FRAMEWORKS)
@pytest.mark.parametrize("source", FRAMEWORKS)
def test_loaded_into_arrays_of_another_framework(stores: dict[str, Saved], source: str, target: str) -> None:
    saved, framework = stores[source], FRAMEWORKS[target]
    there, _ = split(saved, framework.lacks)
    like = {
        key: framework.make(np.zeros(each.shape, each.dtype))
        for key, each in saved.wanted.items()
        if key in there
    }
    state = saved.manager.load(like=like, include=there)
    for key in there:
        assert same(framework, state[key], saved.wanted[key]), key
        if target in ("torch", "numpy", "keras") or isinstance(like[key], tf.Variable):
            assert state[key] is like[key], "filled in place"


@pytest.mark.parametrize("target", ["torch", "numpy"])
def test_loaded_into_other_layouts(stores: dict[str, Saved], target: str) -> None:
    saved, framework = stores["numpy"], FRAMEWORKS[target]
    key = "float32 plain"
    base = framework.make(np.zeros((12, 13), np.float32))
    for like in (base[:4, :6], base[1::2, 1::2][:4], base.T[2:6, 1:7]):
        assert saved.manager.load(like={key: like}, include=key)[key] is like
        assert same(framework, like, saved.wanted[key])


@pytest.mark.parametrize("target", ["torch", "jax", "tensorflow"])
def test_the_other_byte_order_is_turned(tmp_path: Path, target: str) -> None:
    with CheckpointManager(tmp_path / "store", experiment="test") as manager:
        manager.save({"a": np.arange(6, dtype=">f4").reshape(2, 3), "b": np.array(5, ">i8")}, step=1).result()
        state = manager.load(framework=target)
    framework = FRAMEWORKS[target]
    assert same(framework, state["a"], np.arange(6, dtype=np.float32).reshape(2, 3))
    assert same(framework, state["b"], np.array(5, np.int64))


@pytest.mark.parametrize("target", ["torch", "jax", "tensorflow"])
@pytest.mark.parametrize(
    "array", [np.array(["text"]), np.array(["2020-01-01"], "M8[D]")], ids=["text", "date"]
)
def test_what_only_numpy_has(tmp_path: Path, target: str, array: Any) -> None:
    with CheckpointManager(tmp_path / "store", experiment="test") as manager:
        manager.save({"a": array}, step=1).result()
        with pytest.raises(StateMismatchError, match=r'has no .*: load this tensor .* framework="numpy"'):
            manager.load(framework=target)
        assert same(FRAMEWORKS["numpy"], manager.load()["a"], array)


def test_jax_keeps_64_bits_without_being_told(tmp_path: Path) -> None:
    """It cuts them down where it makes arrays itself; a checkpoint gives back what it was given, or says no."""
    assert not jax.config.jax_enable_x64
    with CheckpointManager(tmp_path / "store", experiment="test") as manager:
        manager.save({"a": torch.tensor([2**40 + 1]), "b": torch.tensor([7])}, step=1).result()
        assert manager.load(framework="jax")["a"].dtype == np.int64
        assert int(manager.load(framework="jax")["a"][0]) == 2**40 + 1
        small = jax.numpy.zeros(1, int)
        assert small.dtype == np.int32
        assert manager.load(like={"a": to_jax(np.zeros(1, np.int64)), "b": small})["b"].dtype == np.int32
        with pytest.raises(StateMismatchError, match="a: its values do not fit in int32"):
            manager.load(like={"a": small, "b": small})


@pytest.mark.filterwarnings("ignore:Explicitly requested dtype int64")
@pytest.mark.skipif(keras.backend.backend() != "jax", reason="Keras on JAX says 64 bits and holds 32")
def test_keras_on_jax_does_not_lose_what_it_cannot_hold(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path / "store", experiment="test") as manager:
        manager.save({"a": np.array([2**40 + 1])}, step=1).result()
        like = keras.Variable(np.zeros(1, np.int64), dtype="int64", trainable=False)
        with pytest.raises(StateMismatchError, match="a: .*do not fit"):
            manager.load(like={"a": like})
        manager.save({"a": np.array([2**30])}, step=2).result()
        manager.load(like={"a": like})
        assert from_keras(like)[0] == 2**30


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(16, 32)
        self.encoder = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.norm = nn.BatchNorm1d(32)
        self.head = nn.Linear(32, 8, dtype=torch.bfloat16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.encoder(self.embed(x)).mean(1)).bfloat16())


def trained(seed: int, steps: int) -> Net:
    torch.manual_seed(seed)
    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        net(torch.randn(8, 5, 16)).float().square().mean().backward()
        optimizer.step()
    return net.eval()


def test_real_weights_go_round_all_frameworks_and_come_back(tmp_path: Path) -> None:
    source = trained(1, steps=3)
    state: Any = dict(source.state_dict())
    names = set(state)
    assert {str(each.dtype) for each in state.values()} == {"torch.float32", "torch.bfloat16", "torch.int64"}
    for number, name in enumerate(["jax", "keras", "tensorflow", "numpy", "torch"]):
        with CheckpointManager(tmp_path / "store", experiment=f"{number}") as manager:
            manager.save({"model": state}, step=1).result()
            if name == "keras":  # into variables, where those can hold it
                hosts = manager.load(framework="numpy")["model"]
                like = {
                    key: host if host.dtype.name in keras_lacks() else to_keras(np.zeros_like(host))
                    for key, host in hosts.items()
                }
                state = manager.load(like={"model": like})["model"]
                assert sum(isinstance(each, keras.Variable) for each in state.values()) > 10
            elif name == "tensorflow":  # into a module, by attribute
                module = tf.train.Checkpoint()
                for key, each in manager.load(framework="numpy")["model"].items():
                    setattr(module, key, tf.Variable(np.zeros_like(each)))
                assert manager.load(like={"model": module})["model"] is module
                state = module
            else:
                state = manager.load(framework=name)["model"]
    target = trained(2, steps=1)
    target.load_state_dict(state)
    assert set(state) == names
    for key, each in source.state_dict().items():
        assert same(FRAMEWORKS["torch"], target.state_dict()[key], from_torch(each)), key
    x = torch.randn(3, 5, 16)
    assert torch.equal(source(x), target(x))


def test_the_table_in_the_documentation_is_this_one() -> None:
    rows = re.findall(r"^\| `(\w+)` \|(.*)\|$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    told = {name: [cell.strip() for cell in cells.split("|")] for name, cells in rows}
    lacks = [LACKS["torch"], LACKS["jax"], KERAS_LACKS, LACKS["tensorflow"], LACKS["numpy"]]
    assert told == {name: ["no" if name in each else "yes" for each in lacks] for name in DTYPES}
