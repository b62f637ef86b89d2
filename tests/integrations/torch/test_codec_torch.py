"""Every tensor that PyTorch can make comes back as it was, or is refused by path: alone, in place, through a store."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ckpt_core.errors import StateError, StateMismatchError
from ckpt_core.model import TensorSpec
from ckpt_core.repository import Repository
from ckpt_core.stores import LocalStore, MemoryStore
from ckpt_core.tree import UnsupportedValueError, flatten, registry
from ckpt_torch.codec import _NAME_OF, TorchCodec
from contract.store_case import commit, load, new_repository

codec = TorchCodec()
DTYPES = sorted(_NAME_OF, key=str)
INTEGERS = [d for d in DTYPES if _NAME_OF[d][0] in "UI"]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "ComplexHalf support is experimental")
        yield


def of_bytes(dtype: torch.dtype, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """A tensor of random bits."""
    count = int(np.prod(shape)) * dtype.itemsize
    high = 2 if dtype == torch.bool else 256
    data = np.random.default_rng(seed).integers(0, high, count, np.uint8)
    return torch.from_numpy(data).view(dtype).reshape(shape)


def bits(tensor: torch.Tensor) -> bytes:
    return (
        tensor.detach()
        .resolve_conj()
        .resolve_neg()
        .contiguous()
        .reshape(-1)
        .view(torch.uint8)
        .numpy()
        .tobytes()
    )


def same(left: Any, right: Any) -> bool:
    return left.dtype == right.dtype and left.shape == right.shape and bits(left) == bits(right)


def trip(state: Any, **options: Any) -> Any:
    repository = new_repository(MemoryStore())
    return load(repository, commit(repository, state).key, **options)


# -- every dtype


def test_the_dtypes_are_those_that_torch_shares_with_safetensors() -> None:
    from safetensors import torch as theirs

    known = {dtype for dtype in theirs._TYPES.values() if isinstance(dtype, torch.dtype)}
    assert known <= set(DTYPES)
    assert len(DTYPES) >= 22


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 4), (1,), (5000,)], ids=str)
def test_a_tensor_comes_back(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = of_bytes(dtype, shape)
    found = trip({"x": tensor})["x"]
    assert type(found) is torch.Tensor
    assert same(found, tensor)
    assert not found.requires_grad


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_tensor_without_values_comes_back(dtype: torch.dtype) -> None:
    for shape in ((0,), (3, 0, 2)):
        assert same(trip({"x": torch.empty(shape, dtype=dtype)})["x"], torch.empty(shape, dtype=dtype))


@pytest.mark.parametrize("dtype", [d for d in DTYPES if _NAME_OF[d] != "F4"], ids=str)
def test_a_single_value_comes_back(dtype: torch.dtype) -> None:
    found = trip({"x": of_bytes(dtype, (1,)).reshape(())})["x"]
    assert same(found, of_bytes(dtype, (1,)).reshape(()))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_tensor_is_filled_in_place(dtype: torch.dtype) -> None:
    tensor, like = of_bytes(dtype, (4, 6)), of_bytes(dtype, (4, 6), seed=1)
    address = like.data_ptr()
    found = trip({"x": tensor}, like={"x": like})["x"]
    assert found is like
    assert found.data_ptr() == address
    assert same(found, tensor)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_plain_safetensors_gives_the_tensor(dtype: torch.dtype, store_path: Path) -> None:
    tensor = of_bytes(dtype, (2, 6))
    committed = commit(new_repository(LocalStore(store_path)), {"model": {"w": tensor}})
    found = load_file(store_path / "packs" / committed.packs[0][0])
    assert list(found) == ["model/w"]
    if _NAME_OF[dtype] in ("C32", "C128"):
        assert bytes(found["model/w"].numpy()) == bits(tensor)  # which safetensors lacks
    else:
        assert same(found["model/w"], tensor)


def test_float4_is_counted_in_values() -> None:
    tensor = of_bytes(torch.float4_e2m1fn_x2, (3, 5))
    assert codec.spec(tensor) == TensorSpec("F4", (3, 10))
    with pytest.raises(StateError, match="'x'.*add one"):
        flatten({"x": tensor.reshape(-1)[0]}, registry)
    with pytest.raises(UnsupportedValueError):
        codec.wrap(TensorSpec("F4", (2, 3)), np.zeros(3, np.uint8))


def test_float4_can_be_read_as_numpy() -> None:
    import ml_dtypes

    from ckpt_core.tree.builtin import NumpyCodec

    tensor = torch.tensor([0x21, 0xF7], dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    values = NumpyCodec().wrap(codec.spec(tensor), np.frombuffer(bits(tensor), np.uint8))
    assert values.dtype == ml_dtypes.float4_e2m1fn
    assert values.astype(np.float32).tolist() == [0.5, 1.0, 6.0, -6.0]


# -- every layout in memory

BASE = torch.arange(24.0).reshape(2, 3, 4)
LAYOUTS = {
    "transposed": BASE.transpose(0, 2), "permuted": BASE.permute(2, 0, 1), "every other": BASE[..., ::2],
    "a row": BASE[1], "expanded": BASE[:1, :1].expand(5, 3, 4), "flipped": BASE.flip(0), "narrow": BASE.narrow(2, 1, 2),
    "channels last": torch.arange(48.0).reshape(2, 3, 2, 4).contiguous(memory_format=torch.channels_last),
    "parameter": torch.nn.Parameter(BASE.clone()), "with a gradient": BASE.clone().requires_grad_() * 2,
    "conjugate": torch.complex(BASE, -BASE).conj(), "conjugate transposed": torch.complex(BASE[0], BASE[1]).mH,
    "negative": torch.complex(BASE, -BASE).conj().imag, "real part": torch.complex(BASE, -BASE).real,
    "buffer": torch.nn.Buffer(BASE.clone()), "0-d of a row": BASE[1, 2, 3], "diagonal": BASE[0].diagonal(),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_tensor_of_any_layout_comes_back(name: str) -> None:
    tensor = LAYOUTS[name]
    found = trip({"x": tensor})["x"]
    assert same(found, tensor)
    assert found.is_contiguous()


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name != "expanded"])
def test_a_tensor_of_any_layout_is_filled(name: str) -> None:
    like = LAYOUTS[name].detach().clone(memory_format=torch.preserve_format)
    values = torch.rand(like.shape).to(like.dtype)
    found = trip({"x": values}, like={"x": like})["x"]
    assert found is like
    assert (found == values).all()
    assert found.stride() == like.stride()


def test_contiguous_host_memory_is_read_into_directly() -> None:
    like = torch.zeros(2, 3, requires_grad=True)
    direct = codec.destination(like, TensorSpec("F32", (2, 3)))
    assert direct is not None
    direct[:4] = np.frombuffer(np.float32(1.5).tobytes(), np.uint8)
    assert like[0, 0] == 1.5
    for other in (like.T, like.double(), torch.zeros(6), torch.complex(like, like).conj()):
        assert codec.destination(other, TensorSpec("F32", (2, 3))) is None


def test_parameters_are_filled_although_they_require_gradients() -> None:
    model = torch.nn.Linear(3, 2)
    state = {"weight": torch.rand(2, 3), "bias": torch.rand(2)}
    like = dict(model.named_parameters())
    found = trip(state, like=like)
    assert found["weight"] is model.weight
    assert model.weight.requires_grad
    assert same(model.weight, state["weight"])
    model(torch.rand(1, 3)).sum().backward()
    turned = {
        "weight": torch.nn.Parameter(torch.zeros(3, 2).T),
        "bias": torch.nn.Parameter(torch.zeros(2, dtype=torch.float64)),
    }
    found = trip(state, like=turned)
    assert found["weight"] is turned["weight"]
    assert (turned["weight"] == state["weight"]).all()
    assert (turned["bias"] == state["bias"]).all()


def test_an_expanded_tensor_cannot_be_filled_and_says_so() -> None:
    like = {"a": {"x": torch.zeros(1).expand(3)}}
    with pytest.raises(StateMismatchError, match="a/x: torch cannot copy") as caught:
        trip({"a": {"x": torch.rand(3)}}, like=like)
    assert caught.value.paths == ("a/x",)


# -- tied tensors


def test_tied_weights_are_stored_once_and_come_back_as_one() -> None:
    model = torch.nn.ModuleDict(
        {"embed": torch.nn.Embedding(5, 3), "head": torch.nn.Linear(3, 5, bias=False)}
    )
    model["head"].weight = model["embed"].weight
    state = model.state_dict()
    repository = new_repository(MemoryStore())
    committed = commit(repository, state)
    assert len(committed.manifest.tensors) == 1
    found = load(repository, committed.key)
    assert found["embed.weight"] is found["head.weight"]
    again = load(repository, committed.key, like=model.state_dict())
    assert (
        again["embed.weight"].data_ptr() == again["head.weight"].data_ptr() == model["head"].weight.data_ptr()
    )


def test_views_of_one_memory_are_different_tensors() -> None:
    block = torch.arange(10.0)
    views = {
        "all": block,
        "head": block[:5],
        "odd": block[1::2],
        "bits": block.view(torch.int32),
        "square": block[:4].view(2, 2),
    }
    complex_ = torch.complex(block, block)
    views |= {"c": complex_, "conj": complex_.conj(), "neg": complex_.conj().imag, "imag": complex_.imag}
    flat = flatten(views, registry)
    assert len(flat.leaves) == len(views)
    found = trip(views)
    assert all(same(found[name], view) for name, view in views.items())
    assert len(flatten([block, block.detach(), block[:], block.view(10)], registry).leaves) == 1
    square = torch.arange(4.0).view(2, 2)
    assert len(flatten([square, square.T, square.mT], registry).leaves) == 2
    empty = torch.empty(0)
    assert len(flatten([empty, empty, torch.empty(0), square[:0]], registry).leaves) == 3


# -- conversions that `like=` may ask for


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.bfloat16, torch.float16, torch.float8_e4m3fn], ids=str
)
def test_floats_are_converted_among_themselves(dtype: torch.dtype) -> None:
    values = torch.tensor([0.5, -2.0, 0.0])
    found = trip({"x": values}, like={"x": torch.zeros(3, dtype=dtype)})["x"]
    assert found.dtype == dtype
    assert (found.float() == values).all()


@pytest.mark.parametrize("wanted", INTEGERS, ids=str)
@pytest.mark.parametrize("saved", INTEGERS, ids=str)
def test_integers_are_converted_where_they_fit(saved: torch.dtype, wanted: torch.dtype) -> None:
    values, limits = torch.tensor([1, 100], dtype=saved), torch.iinfo(wanted)
    found = trip({"x": values}, like={"x": torch.zeros(2, dtype=wanted)})["x"]
    assert found.tolist() == [1, 100]
    extreme = torch.tensor([torch.iinfo(saved).max, torch.iinfo(saved).min], dtype=saved)
    fit = limits.min <= torch.iinfo(saved).min and torch.iinfo(saved).max <= limits.max
    like = {"x": torch.zeros(2, dtype=wanted)}
    if fit:
        assert trip({"x": extreme}, like=like)["x"].tolist() == extreme.tolist()
    else:
        with pytest.raises(StateMismatchError, match="x: its values do not fit"):
            trip({"x": extreme}, like=like)
        assert like["x"].tolist() == [0, 0]


def test_a_cast_that_torch_lacks_is_refused_by_path() -> None:
    state = {"x": of_bytes(torch.float4_e2m1fn_x2, (2,))}
    with pytest.raises(StateMismatchError, match="x: "):
        trip(state, like={"x": torch.zeros(4)})


def test_frameworks_read_each_other() -> None:
    assert same(trip({"x": np.arange(3.0)}, like={"x": torch.zeros(3)})["x"], torch.arange(3.0))
    found = trip({"x": torch.arange(3)}, like={"x": np.zeros(3, np.int64)})["x"]
    assert found.tolist() == [0, 1, 2]
    with pytest.raises(UnsupportedValueError, match='framework="numpy"'):
        codec.wrap(TensorSpec("<M8[ns]", (1,)), np.zeros(8, np.uint8))


# -- what cannot be saved


def refused() -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            "meta": torch.empty(2, device="meta"), "sparse": torch.eye(2).to_sparse(), "csr": torch.eye(2).to_sparse_csr(),
            "nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
            "jagged": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
            "quantized": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
            "lazy": torch.nn.LazyLinear(3).weight,
        }  # fmt: skip


@pytest.mark.parametrize("name", ["meta", "sparse", "csr", "nested", "jagged", "quantized", "lazy"])
def test_what_has_no_plain_bytes_is_refused_by_path(name: str) -> None:
    with pytest.raises(StateError, match="'a/0'") as caught:
        flatten({"a": [refused()[name]]}, registry)
    assert (caught.value.kind, caught.value.path) == ("unsupported", "a/0")


@pytest.mark.parametrize(
    "what", [torch.nn.Linear(2, 2), torch.optim.SGD([torch.zeros(1)])], ids=["module", "optimizer"]
)
def test_what_has_a_state_dict_is_told_to_save_it(what: Any) -> None:
    with pytest.raises(StateError, match=r"save its state_dict\(\)"):
        flatten({"model": what}, registry)


@pytest.mark.parametrize("shape", [(2, 3), (1 << 40, 1 << 40), (0, 1 << 70)])
def test_a_shape_that_no_tensor_can_have_is_refused(shape: tuple[int, ...]) -> None:
    data = np.zeros(0 if 0 in shape else 4, np.uint8)
    with pytest.raises(UnsupportedValueError, match="torch cannot hold"):
        codec.wrap(TensorSpec("F32", shape), data)


# -- whole states


def test_a_model_with_its_optimizer_comes_back() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 5)
    for _ in range(3):
        model(torch.rand(6, 4)).sum().backward()
        optimizer.step()
        scheduler.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict(),
             "device": torch.device("cuda", 1), "dtype": torch.bfloat16, "size": torch.Size([2, 3]), "rng": torch.get_rng_state()}  # fmt: skip
    found = trip(state)
    assert found["device"] == torch.device("cuda", 1)
    assert found["dtype"] is torch.bfloat16
    assert found["size"] == (2, 3)
    assert torch.equal(found["rng"], state["rng"])
    other = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 2))
    other.load_state_dict(found["model"])
    assert all(
        same(a, b) for a, b in zip(other.state_dict().values(), model.state_dict().values(), strict=True)
    )
    fresh = torch.optim.AdamW(other.parameters(), lr=1)
    fresh.load_state_dict(found["optimizer"])
    assert fresh.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]
    again = trip(state, like=state)
    assert type(again["size"]) is tuple
    assert again["model"]["0.weight"].data_ptr() == state["model"]["0.weight"].data_ptr()


def test_five_thousand_tiny_tensors() -> None:
    state = {f"layer.{n}": torch.full((n % 5,), float(n)) for n in range(5000)}
    found = trip(state)
    assert all(same(found[name], tensor) for name, tensor in state.items())


def test_the_frozen_store_gives_tensors() -> None:
    here = Path(__file__).parents[2] / "compat"
    spec = importlib.util.spec_from_file_location("write_store", here / "write_store.py")
    assert spec is not None
    assert spec.loader is not None
    writer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(writer)
    repository = Repository.open(LocalStore(here / "format-1"))
    found = load(repository, next(key.key for key in repository.manifest_keys() if key.step == 450))
    for tensor in writer.torch_snapshot().tensors:
        assert codec.spec(found[tensor.path]) == tensor.spec
        assert bits(found[tensor.path]) == tensor.data.tobytes()
    assert found["f4"].dtype == torch.float4_e2m1fn_x2
    assert found["f4"].shape == (2, 2)
    assert found["device"] == torch.device("cpu")
    assert found["dtype"] is torch.bfloat16
