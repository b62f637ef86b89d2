"""`ckpt serve` where it cannot serve. The server itself is tested where FastAPI is, in `tests/integrations/web`."""

from __future__ import annotations

import sys

import pytest

from cli.calls import Call


def test_without_its_extra_it_says_what_to_install(ckpt: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    answer = ckpt("serve")
    assert answer.code == 1
    assert "pip install 'ckpt-core[serve]'" in answer.err


def test_its_help_needs_nothing(ckpt: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert "--allow-write" in ckpt("serve", "--help").out


def test_where_there_is_no_store(ckpt: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ckpt("serve", "--store", "nowhere").code == 10
