"""How values become columns, and which mounts are network file systems."""

from __future__ import annotations

import json
import math
import sys
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.schema import CreateIndex, CreateTable

from ckpt_core.catalog import schema
from ckpt_core.catalog.mounts import is_on_network
from ckpt_core.catalog.types import (
    UtcMicroseconds,
    from_json,
    microseconds,
    rank_of,
    split_number,
    tidy,
    to_json,
    unsplit_number,
    untidy_number,
)

SQLITE = sqlite.dialect()


@given(st.datetimes(timezones=st.just(UTC)))
def test_a_moment_survives_being_a_number(moment: datetime) -> None:
    column = UtcMicroseconds()
    stored = column.process_bind_param(moment, SQLITE)
    assert isinstance(stored, int)
    assert column.process_result_value(stored, SQLITE) == moment
    assert microseconds(moment + timedelta(microseconds=1) if moment.year < 9_999 else moment) >= stored


def test_no_moment_is_nothing() -> None:
    assert UtcMicroseconds().process_bind_param(None, SQLITE) is None
    assert UtcMicroseconds().process_result_value(None, SQLITE) is None


@given(st.floats())
def test_a_number_survives_being_split(value: float) -> None:
    finite, special = split_number(value)
    assert (finite is None) is not (special is None)
    again = unsplit_number(finite, special)
    assert again == value or (math.isnan(again) and math.isnan(value))
    tidied = json.loads(to_json(tidy(value)))
    assert untidy_number(tidied) == value or math.isnan(untidy_number(tidied))


def test_a_special_word_of_somebody_else_is_no_number() -> None:
    assert math.isnan(unsplit_number(None, "many"))
    assert math.isnan(unsplit_number(None, None))
    assert math.isnan(untidy_number("many"))


def test_ranks() -> None:
    assert rank_of(math.nan) is None
    assert rank_of(math.inf) == sys.float_info.max
    assert rank_of(-math.inf) == -sys.float_info.max
    assert rank_of(0.5) == 0.5


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (True, True),
        (np.int64(3), 3),
        (np.float32(0.5), 0.5),
        (Fraction(1, 4), 0.25),
        (2**63, str(2**63)),
        (-(2**63), -(2**63)),
        (np.float32("nan"), "nan"),
        ({1: {"a": (1, [2])}}, {"1": {"a": [1, [2]]}}),
        (Path("x"), "x"),
        ("a\0\udc80", "a\\x00\\udc80"),
        ({"\ud800": 1}, {"\\ud800": 1}),
        (b"x", "b'x'"),
    ],
    ids=repr,
)
def test_tidy(value: Any, expected: Any) -> None:
    assert tidy(value) == expected
    assert type(tidy(value)) is type(expected)


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(), st.lists))
def test_what_is_tidy_is_json(value: Any) -> None:
    assert from_json(to_json(tidy(value))) == tidy(value)


def test_canonical_json() -> None:
    assert to_json({"b": [1, 0.1], "a": "é"}) == '{"a":"\\u00e9","b":[1,0.1]}'
    with pytest.raises(ValueError, match="JSON"):
        to_json(math.nan)
    assert from_json("{no") == {"unreadable": "{no"}


@pytest.mark.parametrize("dialect", [postgresql.dialect(), mysql.dialect(), SQLITE], ids=lambda d: d.name)
def test_every_database_can_be_told_to_make_the_tables(dialect: Any) -> None:
    told = ""
    for table in schema.metadata.sorted_tables:
        told += str(CreateTable(table).compile(dialect=dialect))
        told += "".join(str(CreateIndex(index).compile(dialect=dialect)) for index in table.indexes)
    exact = {"postgresql": 'VARCHAR(255) COLLATE "C"', "mysql": "utf8mb4_0900_bin", "sqlite": "VARCHAR(255)"}
    assert exact[dialect.name] in told


MOUNTS = r"""
/dev/sda1 / ext4 rw,relatime 0 0
proc /proc proc rw 0 0
server:/export /data nfs4 rw,vers=4.2 0 0
/dev/sdb1 /data/local xfs rw 0 0
//server/share /mnt/my\040share cifs rw 0 0
user@host: /mnt/ssh fuse.sshfs rw 0 0
/dev/fuse /mnt/ntfs fuse.ntfs-3g rw 0 0
lustre /scratch lustre rw 0 0
host /share 9p rw 0 0
/dev/sdc1 /twice ext4 rw 0 0
server:/x /twice nfs rw 0 0
server:/y /once nfs rw 0 0
/dev/sdd1 /once ext4 rw 0 0
server:/z /deep/inner nfs rw 0 0
/dev/sde1 /deep ext4 rw 0 0
short
"""


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/anything/catalog.db", False),
        ("/data/catalog.db", True),
        ("/data", True),
        ("/database/catalog.db", False),
        ("/data/local/catalog.db", False),
        ("/data/localhost/catalog.db", True),
        ("/mnt/my share/catalog.db", True),
        ("/mnt/ssh/a/b/c/catalog.db", True),
        ("/mnt/ntfs/catalog.db", False),
        ("/scratch/catalog.db", True),
        ("/share/catalog.db", True),
        ("/twice/catalog.db", True),
        ("/once/catalog.db", False),
        ("/deep/inner/catalog.db", True),
    ],
)
def test_network_file_systems(tmp_path: Path, path: str, expected: bool) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(MOUNTS)
    assert is_on_network(Path(path), mounts) is expected


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "near").symlink_to(tmp_path / "far")
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/sda1 / ext4 rw 0 0\nserver:/x {tmp_path.resolve()}/far nfs rw 0 0\n")
    assert is_on_network(tmp_path / "near" / "catalog.db", mounts)


def test_without_a_table_of_mounts_nothing_is_known(tmp_path: Path) -> None:
    assert is_on_network(tmp_path, tmp_path / "none") is False
