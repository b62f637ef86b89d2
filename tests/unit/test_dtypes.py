"""Names of element types: each goes to numpy and back, and what a file may claim is believed in nothing."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import numpy as safetensors_numpy

from ckpt_core.errors import FormatError
from ckpt_core.model import TensorSpec
from ckpt_core.tree import dtypes

PLAIN = [
    "?", "u1", "i1", "<u2", "<i2", "<u4", "<i4", "<u8", "<i8", "<f2", "<f4", "<f8", "<c8", "<c16", ">f4", ">i8", ">u2",
    ">c8", "<M8[ns]", "<M8[D]", "<M8[25s]", "<M8", ">M8[us]", "<m8[ms]", "S5", "<U3", ">U2", "S1",
]  # fmt: skip
ML = [
    name
    for name in sorted(vars(ml_dtypes))
    if isinstance(getattr(ml_dtypes, name), type)
    and name.lstrip("ub").startswith(("float", "int", "complex"))
]


@pytest.mark.parametrize("text", PLAIN)
def test_a_numpy_dtype_has_a_name_and_comes_back(text: str) -> None:
    dtype = np.dtype(text)
    name = dtypes.name_of_numpy(dtype)
    assert name is not None
    assert dtypes.numpy_dtype(name) == dtype
    assert dtypes.numpy_dtype(name).str == dtype.str
    assert dtypes.nbytes(TensorSpec(name, (3, 2))) == 6 * dtype.itemsize


@pytest.mark.parametrize("text", ML)
def test_each_of_ml_dtypes_has_a_name_and_comes_back(text: str) -> None:
    dtype = np.dtype(getattr(ml_dtypes, text))
    name = dtypes.name_of_numpy(dtype)
    assert name is not None
    assert dtypes.numpy_dtype(name) == dtype
    assert dtypes.nbytes(TensorSpec(name, (3,))) == 3 * dtype.itemsize
    assert dtypes.family(name) == (
        "complex" if "complex" in text else "integer" if "int" in text else "float"
    )


def test_ml_dtypes_are_many() -> None:
    assert len(ML) >= 15


@pytest.mark.parametrize(
    "dtype", ["O", "V8", "i4,f4", np.longdouble, np.clongdouble, ("i4", (2,)), "S0", "U0"]
)
def test_what_has_no_fixed_bytes_has_no_name(dtype: object) -> None:
    assert dtypes.name_of_numpy(np.dtype(dtype)) is None  # type: ignore[call-overload]


def test_variable_length_texts_have_no_name() -> None:
    if not hasattr(np.dtypes, "StringDType"):
        pytest.skip("this numpy has no variable-length texts")
    assert dtypes.name_of_numpy(np.dtypes.StringDType()) is None


@pytest.mark.parametrize(
    "name",
    [
        "", "f4", "=f4", "<f16", "<c32", "|O8", "|V8", "<i3", "|b2", "<M4", "<M8[x]", "<U0", "|S0000000005", "float32",
        "ml:", "ml:float32", "ml:__class__", "ml:finfo", "ml:../x", "F4 ", "F32\n", "<f4\n", "i4,f4", "<f4,<f4",
        "(2,)f4", "U8" * 100, "|S" + "9" * 50, "<M8[" + "9" * 20 + "s]", "<f٤", "\0",
    ],
)  # fmt: skip
def test_a_name_that_means_nothing_is_refused(name: str) -> None:
    with pytest.raises(FormatError) as caught:
        dtypes.nbytes(TensorSpec(name, (1,)))
    assert (caught.value.kind, caught.value.dtype) == ("dtype", name)


@given(
    st.text(max_size=12)
    | st.from_regex(r"[<>|=][biufcmMSU][0-9]{1,3}(\[[a-zA-Z0-9]{1,4}\])?", fullmatch=True)
)
def test_any_name_is_a_dtype_or_refused(name: str) -> None:
    try:
        dtype = dtypes.numpy_dtype(name)
    except FormatError:
        return
    assert not dtype.hasobject
    assert dtype.itemsize > 0


def test_the_names_are_those_of_safetensors() -> None:
    known = set(safetensors_numpy._TYPES) - {"F8_E4M3FN"}
    assert known <= dtypes.SAFETENSORS_BITS.keys()


@pytest.mark.parametrize(("name", "expected"), [("U8", 1), ("F4", 1), ("BF16", 2), ("C64", 8), ("C128", 8), ("<U3", 4),
                                                ("|S6", 2), ("|S5", 1), ("F64", 8), ("ml:int4", 1)])  # fmt: skip
def test_alignment_is_what_the_values_need(name: str, expected: int) -> None:
    assert dtypes.alignment(name) == expected


def test_half_bytes_must_come_in_pairs() -> None:
    assert dtypes.nbytes(TensorSpec("F4", (3, 2))) == 3
    assert dtypes.nbytes(TensorSpec("F4", (0,))) == 0
    with pytest.raises(FormatError):
        dtypes.nbytes(TensorSpec("F4", (3,)))


def test_what_safetensors_lacks_is_stored_as_bytes() -> None:
    assert dtypes.stored_as(TensorSpec("F32", (2, 3))) == TensorSpec("F32", (2, 3))
    for name, size in (("C128", 96), ("<M8[ns]", 48), ("|S5", 30), (">f4", 24), ("ml:int4", 6), ("C32", 24)):
        assert dtypes.stored_as(TensorSpec(name, (2, 3))) == TensorSpec("U8", (size,))


@pytest.mark.parametrize(
    ("saved", "wanted", "may"),
    [
        ("F32", "BF16", True), ("F8_E4M3", "F64", True), ("F4", "F32", True), (">f4", "F32", True),
        ("I64", "U8", True), ("U8", "ml:int4", True), ("C64", "C128", True), ("ml:complex32", "C64", True),
        ("F32", "I32", False), ("I32", "F32", False), ("BOOL", "U8", False), ("C64", "F32", False),
        ("<M8[ns]", "<M8[ns]", True), ("<M8[ns]", "<M8[us]", False), ("<M8[ns]", "I64", False), ("|S5", "|S6", False),
    ],
)  # fmt: skip
def test_like_converts_within_a_family(saved: str, wanted: str, may: bool) -> None:
    assert dtypes.can_cast(saved, wanted) is may


@pytest.mark.parametrize(
    ("values", "wanted", "may"),
    [
        (np.array([127, -128]), "I8", True), (np.array([128]), "I8", False), (np.array([-1]), "U64", False),
        (np.array([2**63], np.uint64), "I64", False), (np.array([2**63 - 1], np.uint64), "I64", True),
        (np.array([7, -8]), "ml:int4", True), (np.array([8]), "ml:int4", False), (np.array([], np.int64), "I8", True),
        (np.array([7], ml_dtypes.uint4), "I8", True), (np.array([9], ml_dtypes.uint4), "ml:int4", False),
        (np.array([300], ">i4"), "U8", False), (np.array([1e30]), "F32", True), (np.array([1e30]), "F16", True),
    ],
)  # fmt: skip
def test_integers_that_would_wrap_do_not_fit(values: np.ndarray, wanted: str, may: bool) -> None:
    assert dtypes.fits(values, wanted) is may
