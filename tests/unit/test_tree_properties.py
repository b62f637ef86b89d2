"""Whatever a state holds comes back to the last bit: through JSON alone, and through a whole repository."""

from __future__ import annotations

import math
import struct
from typing import Any

import ml_dtypes
import msgspec
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from ckpt_core.repository import Repository
from ckpt_core.stores import MemoryStore
from ckpt_core.tree import check_tree, flatten, rebuild, registry
from contract.store_case import commit, load, new_repository, same

PLAIN_DTYPES = st.sampled_from(
    ["?", "u1", "i1", "<u2", "<i4", "<i8", "<u8", "<f2", "<f4", "<f8", "<c8", "<c16", ">f4", ">i2", ">c16", "S5", "<U3"]
)  # fmt: skip
SHAPES = npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
ML_DTYPES = st.sampled_from(
    [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.int4]
)


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    """Arrays of many dtypes, of random bits (any NaN), laid out in memory in many ways."""
    shape = draw(SHAPES)
    dtype = np.dtype(draw(PLAIN_DTYPES | ML_DTYPES | st.sampled_from(["<M8[ns]", "<m8[D]"])))
    if dtype.kind in "biuSUmM":
        array = draw(npst.arrays(dtype, shape))
    else:
        size = math.prod(shape) * dtype.itemsize
        data = np.frombuffer(draw(st.binary(min_size=size, max_size=size)), np.uint8)
        array = (data & 7 if dtype == ml_dtypes.int4 else data).view(dtype).reshape(shape)
    way = draw(st.sampled_from(["as it is", "Fortran", "backwards", "every other", "read-only"]))
    if way == "Fortran":
        return np.asfortranarray(array)
    if way == "backwards" and array.ndim:
        return array[::-1]
    if way == "every other" and array.ndim:
        return np.repeat(array, 2, axis=-1)[..., ::2]
    array = array.copy()
    array.flags.writeable = way != "read-only"
    return array


def _distinct(mapping: dict[Any, Any]) -> bool:
    return len({str(key) for key in mapping}) == len(mapping)


nans = st.integers(1, 2**52 - 1).map(
    lambda bits: struct.unpack(">d", struct.pack(">Q", 0x7FF0 << 48 | bits))[0]
)
texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)
huge = st.sampled_from([2**63, -(2**63) - 1, 10**4000]).map(int)
scalars = (
    st.none() | st.booleans() | st.integers() | st.integers(-(2**70), 2**70) | st.floats() | nans | st.complex_numbers()
    | texts | st.binary(max_size=20) | huge | st.sampled_from([0.0, -0.0, 5e-324, 1e22])
)  # fmt: skip
members = st.integers() | texts | st.booleans() | st.none()
objects = (
    st.frozensets(members, max_size=4) | st.datetimes() | st.timedeltas() | st.uuids() | st.fractions()
    | st.decimals(allow_nan=False) | npst.from_dtype(np.dtype("<f4")) | npst.from_dtype(np.dtype("<M8[s]"))
)  # fmt: skip
keys = texts | st.sampled_from(
    ["$tensor", "$", "a/b", "~1", "", "__metadata__", "x[0:4]", "\0", "\x1b[31m", "‮"]
)
states = st.recursive(
    scalars | objects | arrays(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(keys, inner, max_size=4)
        | st.dictionaries(st.integers() | st.floats(allow_nan=False) | st.none(), inner, max_size=3).filter(
            _distinct
        )
    ),
    max_leaves=10,
)


@given(states)
@settings(max_examples=3 * settings.default.max_examples, suppress_health_check=[HealthCheck.too_slow])
def test_a_state_survives_json(state: Any) -> None:
    flat = flatten(state, registry)
    tree = msgspec.json.decode(msgspec.json.encode(flat.tree))
    check_tree(tree, len(flat.leaves))

    def get(index: int, _: Any) -> Any:
        leaf = flat.leaves[index]
        out = np.empty(leaf.value.nbytes if hasattr(leaf.value, "nbytes") else len(leaf.value), np.uint8)
        if out.size:
            leaf.codec.copy_into(leaf.value, out)
        view = leaf.codec.view(leaf.value)
        assert view is None or (view == out).all()
        return leaf.codec.wrap(leaf.spec, out)

    assert same(rebuild(tree, get, registry), state)


@given(st.lists(states, min_size=1, max_size=3))
@settings(max_examples=settings.default.max_examples, suppress_health_check=[HealthCheck.too_slow])
def test_states_survive_a_repository(versions: list[Any]) -> None:
    repository = new_repository(MemoryStore())
    committed = []
    for step, state in enumerate(versions):
        committed.append(commit(repository, state, step, base=committed[-1].manifest if committed else None))
    again = Repository.open(repository.store)
    for state, each in zip(versions, committed, strict=True):
        assert same(load(again, each.key), state)
        assert same(load(again, each.key, like=state), state)
