"""What a registry finds, and what each codec that comes with the engine does to its values."""

from __future__ import annotations

import collections
import datetime as dt
import decimal
import fractions
import logging
import pathlib
import uuid
from importlib.metadata import EntryPoint
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest

from ckpt_core.errors import FormatError, MissingExtraError, StateError
from ckpt_core.stores import MemoryStore
from ckpt_core.tree import (
    CodecRegistry,
    ObjectCodec,
    UnsupportedValueError,
    codecs,
    flatten,
    register_builtin,
)
from ckpt_core.tree.builtin import NumpyCodec
from contract.store_case import commit, load, new_repository, same


@pytest.fixture
def registry() -> CodecRegistry:
    fresh = CodecRegistry()
    register_builtin(fresh)
    return fresh


def trip(value: Any) -> Any:
    """A value through a whole store and back."""
    repository = new_repository(MemoryStore())
    return load(repository, commit(repository, {"value": value}).key)["value"]


# -- objects

OBJECTS = [
    set(), {1, 2, 3}, {"a", 1, None, 2.5, (1, "x")}, frozenset({1, frozenset({2})}), range(3, 30, 7), slice(None, 5),
    slice("a", (1, 2), None), dt.datetime(2026, 1, 2, 3, 4, 5, 6), dt.datetime(2026, 1, 2, tzinfo=dt.UTC),
    dt.datetime(2026, 1, 2, tzinfo=dt.timezone(dt.timedelta(hours=-3, minutes=-30))), dt.date(1, 1, 1),
    dt.time(23, 59, 59, 999999), dt.timedelta(-3, 5, 7), uuid.UUID(int=2**127 + 1), decimal.Decimal("1.10"),
    decimal.Decimal("-Infinity"), fractions.Fraction(-3, 10**30), pathlib.PurePosixPath("a/b"),
    pathlib.Path("/x/ä"), collections.deque([1, [2], "x"], maxlen=5), collections.deque(),
    np.float64(-0.0), np.float32("nan"), np.int8(-3), np.uint64(2**64 - 1), np.bool_(True), np.complex64(1 + 2j),
    np.float16(0.1), np.str_("äöü"), np.str_(""), np.bytes_(b"abc"), np.bytes_(b""), np.datetime64("2026-01-02", "D"),
    np.datetime64("NaT"), np.timedelta64(5, "ms"), ml_dtypes.bfloat16(1.5), ml_dtypes.float8_e4m3fn(0.5),
    ml_dtypes.int4(-8),
]  # fmt: skip


@pytest.mark.parametrize(
    "value", OBJECTS, ids=[f"{i}-{type(value).__name__}" for i, value in enumerate(OBJECTS)]
)
def test_an_object_comes_back_as_it_was(value: Any) -> None:
    found = trip(value)
    assert type(found) is type(value)
    assert same(found, value)
    if isinstance(value, collections.deque):
        assert found.maxlen == value.maxlen


def test_a_set_gives_the_same_bytes_whatever_its_order(registry: CodecRegistry) -> None:
    one, other = {"a", "b", "c", "d", 1, 2.5}, set()
    for member in (2.5, 1, "d", "c", "b", "a"):
        other.add(member)
    assert flatten(one, registry).tree == flatten(other, registry).tree


@pytest.mark.parametrize("name", ["PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64"])
def test_a_generator_goes_on_where_it_was(name: str) -> None:
    generator = np.random.Generator(getattr(np.random, name)(12345))
    generator.random(7)
    generator.integers(0, 100, 3, np.uint32)  # leaves half of a draw behind in some
    generator.spawn(2)
    again = trip(generator)
    assert type(again.bit_generator) is type(generator.bit_generator)
    assert (again.random(100) == generator.random(100)).all()
    assert (again.integers(0, 9, 100) == generator.integers(0, 9, 100)).all()
    assert again.spawn(1)[0].random() == generator.spawn(1)[0].random()


def test_a_generator_made_without_a_seed_of_numpy_s_kind_goes_on_too() -> None:
    class Own(np.random.bit_generator.ISeedSequence):
        def generate_state(self, n_words: int, dtype: Any = np.uint32) -> Any:
            return np.arange(1, n_words + 1, dtype=dtype)

    generator = np.random.Generator(np.random.PCG64(Own()))
    assert (trip(generator).random(10) == generator.random(10)).all()


def test_a_random_state_goes_on_where_it_was() -> None:
    state = np.random.RandomState(7)
    state.randn(3)  # an odd number leaves a second normal value behind
    assert (trip(state).randn(10) == state.randn(10)).all()


def test_long_and_short_bytes_come_back() -> None:
    long = bytes(range(256)) * 50
    for value in (b"", b"x", long[:1024], long[:1025], long, bytearray(), bytearray(b"x"), bytearray(long)):
        found = trip(value)
        assert type(found) is type(value)
        assert found == value


@pytest.mark.parametrize("value", [np.longdouble(1), np.void(b"12345678"), np.clongdouble(1j)])
def test_a_scalar_without_fixed_bytes_is_refused(registry: CodecRegistry, value: Any) -> None:
    with pytest.raises(StateError, match=r"'a/b'.*no fixed bytes"):
        flatten({"a": {"b": value}}, registry)


# -- registering


class Vocabulary:
    def __init__(self, words: list[str]) -> None:
        self.words = words


class Point(NamedTuple):
    x: int
    y: int


class Box(dict):  # type: ignore[type-arg]
    pass


def test_a_registered_type_comes_back(registry: CodecRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codecs, "registry", registry)
    monkeypatch.setattr("contract.store_case.registry", registry)
    codecs.register_codec(
        Vocabulary, name="test.Vocabulary", encode=lambda v: {"words": v.words, "size": np.arange(3)},
        decode=lambda p: Vocabulary(p["words"]),
    )  # fmt: skip
    assert trip(Vocabulary(["a", "b"])).words == ["a", "b"]


@pytest.mark.parametrize("value", [Point(1, 2), Box(a=1)])
def test_a_registered_container_comes_back_as_itself(
    registry: CodecRegistry, monkeypatch: pytest.MonkeyPatch, value: Any
) -> None:
    kind = type(value)
    registry.add_object(ObjectCodec("test.kind", kind, dict if kind is Box else list, lambda p: kind(**p) if kind is Box else kind(*p)))  # fmt: skip
    monkeypatch.setattr("contract.store_case.registry", registry)
    assert type(trip(value)) is kind
    repository = new_repository(MemoryStore())
    key = commit(repository, {"v": value, "w": 1}).key
    found = load(repository, key, like={"v": value, "w": 2})
    assert found == {"v": value, "w": 1}
    assert type(found["v"]) is kind


def test_a_subclass_of_a_registered_type_is_not_taken_for_it(registry: CodecRegistry) -> None:
    registry.add_object(ObjectCodec("test.Vocabulary", Vocabulary, lambda v: v.words, Vocabulary))

    class Special(Vocabulary):
        pass

    with pytest.raises(StateError):
        flatten(Special([]), registry)


def test_later_registrations_win(registry: CodecRegistry) -> None:
    for word in ("first", "second"):
        registry.add_object(ObjectCodec("test.Vocabulary", Vocabulary, lambda v, w=word: w, Vocabulary))
    assert flatten(Vocabulary([]), registry).tree["$object"]["value"] == "second"


def test_a_codec_that_is_not_registered_is_named(registry: CodecRegistry) -> None:
    with pytest.raises(FormatError, match="register_codec") as caught:
        registry.object_named("other.Thing")
    assert (caught.value.kind, caught.value.codec) == ("codec", "other.Thing")


def test_an_absent_framework_is_named_with_its_command(registry: CodecRegistry) -> None:
    registry._pending = {}
    with pytest.raises(MissingExtraError, match=r"pip install 'ckpt-core\[jax\]'"):
        registry.tensor_named("jax")
    with pytest.raises(MissingExtraError) as caught:
        registry.tensor_named("x] evil; rm -rf")  # from a file: not to be pasted into a shell
    assert "pip install" not in str(caught.value)


class _Entry:
    """An entry point of a framework that is made here."""

    def __init__(self, name: str, error: Exception | None = None) -> None:
        self.name = name
        self.error = error
        self.loads = 0

    def load(self) -> Any:
        self.loads += 1
        if self.error:
            raise self.error
        return lambda registry: registry.add_object(
            ObjectCodec("x", Vocabulary, lambda v: v.words, Vocabulary)
        )


def test_frameworks_are_asked_on_first_sight_of_their_objects(registry: CodecRegistry) -> None:
    entry = _Entry(Vocabulary.__module__.partition(".")[0])
    pending: Any = {entry.name: entry}
    registry._pending = pending
    flatten({"a": 1, "b": np.zeros(2), "c": [None]}, registry)
    assert entry.loads == 0
    assert flatten(Vocabulary(["a"]), registry).tree["$object"]["value"] == ["a"]
    flatten(Vocabulary(["a"]), registry)
    assert entry.loads == 1


@pytest.mark.parametrize("error", [ImportError("no"), RuntimeError("broken")])
def test_a_framework_that_cannot_be_used_is_as_if_it_had_no_codec(
    registry: CodecRegistry, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    entry = _Entry(Vocabulary.__module__.partition(".")[0], error)
    pending: Any = {entry.name: entry}
    registry._pending = pending
    with caplog.at_level(logging.DEBUG, "ckpt_core"), pytest.raises(StateError):
        flatten(Vocabulary([]), registry)
    assert str(error) in caplog.text


def test_entry_points_are_those_of_the_installed_package() -> None:
    from importlib.metadata import entry_points

    found: dict[str, EntryPoint] = {entry.name: entry for entry in entry_points(group="ckpt_core.codecs")}
    assert found["torch"].value == "ckpt_torch.codec:register"


# -- arrays

codec = NumpyCodec()


def test_contiguous_arrays_are_seen_without_a_copy() -> None:
    array = np.arange(12, dtype=">i4").reshape(3, 4)
    for value in (array, array[1:], array[0], array.reshape(-1, 1), np.array(5.0)):
        view = codec.view(value)
        assert view is not None
        assert view.tobytes() == value.tobytes()
        assert np.shares_memory(view, value)
    for value in (array.T, array[:, 1:], array[::-1], array[::2], np.broadcast_to(array[0], (3, 4))):
        assert codec.view(value) is None
        out = np.empty(value.nbytes, np.uint8)
        codec.copy_into(value, out)
        assert out.tobytes() == value.tobytes()


def test_a_masked_array_is_refused(registry: CodecRegistry) -> None:
    with pytest.raises(StateError, match="mask"):
        flatten({"m": np.ma.masked_array([1, 2], [True, False])}, registry)


@pytest.mark.parametrize("dtype", ["O", "V8", [("a", "i4")], np.longdouble])
def test_an_array_without_fixed_bytes_is_refused(registry: CodecRegistry, dtype: Any) -> None:
    with pytest.raises(StateError, match=r"'a/0'.*no fixed bytes") as caught:
        flatten({"a": [np.zeros(2, dtype)]}, registry)
    assert (caught.value.kind, caught.value.path) == ("unsupported", "a/0")


def test_an_array_is_filled_in_place_where_that_can_be() -> None:
    from ckpt_core.model import TensorSpec

    spec = TensorSpec("F32", (2, 3))
    like = np.zeros((2, 3), np.float32)
    direct = codec.destination(like, spec)
    assert direct is not None
    direct[:] = np.arange(6, dtype=np.float32).view(np.uint8)
    assert like[1, 2] == 5
    frozen = like.copy()
    frozen.flags.writeable = False
    for other in (like.T, like.astype(np.float64), frozen, like[:, ::2], np.zeros(6, np.float32)):
        assert codec.destination(other, spec) is None


def test_an_array_that_cannot_be_filled_is_assigned() -> None:
    value = np.arange(6, dtype=np.float32).reshape(2, 3)
    like = np.zeros((3, 2), np.float64).T
    assert codec.assign(like, value) is like
    assert (like == value).all()
    frozen = np.zeros((2, 3), np.float16)
    frozen.flags.writeable = False
    made = codec.assign(frozen, value)
    assert (made.dtype, frozen.any()) == (np.float16, False)
    assert (made == value).all()
    with pytest.raises(UnsupportedValueError, match="do not fit in int8"):
        codec.assign(np.zeros(1, np.int8), np.array([300]))


@pytest.mark.parametrize("shape", [(0, 2**62), (0,) * 65, (2,), (1 << 40, 1 << 40)])
def test_a_shape_that_no_array_can_have_is_refused(shape: tuple[int, ...]) -> None:
    from ckpt_core.model import TensorSpec

    with pytest.raises(UnsupportedValueError, match="numpy cannot hold"):
        codec.wrap(TensorSpec("F32", shape), np.empty(4, np.uint8))


def test_float4_is_unpacked() -> None:
    from ckpt_core.model import TensorSpec

    values = codec.wrap(TensorSpec("F4", (2, 2)), np.array([0x21, 0xF7], np.uint8))
    assert values.dtype == ml_dtypes.float4_e2m1fn
    assert values.astype(np.float32).tolist() == [[0.5, 1.0], [6.0, -6.0]]
