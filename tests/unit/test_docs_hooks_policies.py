"""The reference pages name everything that can be named, and their examples run."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

import ckpt_core.hooks
import ckpt_core.policies
from ckpt_core.hooks import (
    BaseHook,
    HookContext,
    HookEvent,
    HookFailure,
    HookManager,
    HookOutcome,
    HookPriority,
    HookStatistics,
)
from ckpt_core.hooks.results import FailureKind

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {name: (DOCS / f"{name}.md").read_text(encoding="utf-8") for name in ("hooks", "policies")}
ARGUMENTS_OF_A_HOOK = (
    "name",
    "events",
    "priority",
    "condition",
    "timeout",
    "on_error",
    "max_failures",
    "retry_after",
)


def in_code(page):
    """Everything that a page sets in code, inline or in a block."""
    return "\n".join(re.findall(r"```.*?```|`[^`\n]+`", PAGES[page], flags=re.DOTALL))


def named(page, word):
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", in_code(page)) is not None


def public_fields(*classes):
    return [
        (each.__name__, field.name)
        for each in classes
        for field in dataclasses.fields(each)
        if field.name.strip("_") and not field.name.startswith("_")
    ]


@pytest.mark.parametrize("page", PAGES)
def test_every_public_name_is_in_its_page(page):
    module = {"hooks": ckpt_core.hooks, "policies": ckpt_core.policies}[page]
    # What one comes across only through another name, or in the signature of one.
    incidental = {"FunctionHook", "RetentionPolicy", "SavePolicy", "parse_bytes"}
    assert [name for name in module.__all__ if name not in incidental and not named(page, name)] == []


@pytest.mark.parametrize("member", [*HookEvent, *HookPriority], ids=lambda member: member.name)
def test_every_event_and_priority_has_a_row(member):
    assert re.search(rf"^\| `{member.name}` \| [`\w]", PAGES["hooks"], flags=re.MULTILINE)


def test_the_column_of_vetoes_is_right():
    rows = re.findall(r"^\| `([A-Z_]+)` \|.*\| (yes|) *\|$", PAGES["hooks"], flags=re.MULTILINE)
    vetoes = {name for name, veto in rows if veto}
    assert vetoes == {event.name for event in HookEvent if event.can_be_vetoed}


@pytest.mark.parametrize(
    ("owner", "field"), public_fields(HookContext, HookOutcome, HookFailure, HookStatistics)
)
def test_every_field_of_a_hooks_data_is_named(owner, field):
    assert named("hooks", owner)
    assert named("hooks", field)


@pytest.mark.parametrize("argument", ARGUMENTS_OF_A_HOOK)
def test_every_attribute_of_a_hook_has_a_row(argument):
    assert hasattr(BaseHook, argument)
    assert f"| `{argument}` |" in PAGES["hooks"]


@pytest.mark.parametrize("kind", FailureKind.__args__)
def test_every_kind_of_failure_has_a_row(kind):
    assert f"| `{kind}` |" in PAGES["hooks"]


@pytest.mark.parametrize("method", [name for name in vars(HookManager) if not name.startswith("_")])
def test_every_method_of_the_manager_has_a_row(method):
    assert f"| `{method}(" in PAGES["hooks"]


def policies():
    return [
        policy
        for name in ckpt_core.policies.__all__
        if isinstance(policy := getattr(ckpt_core.policies, name), type)
        and (hasattr(policy, "keep") or hasattr(policy, "wants"))
        and dataclasses.is_dataclass(policy)
    ]


def test_there_are_policies_to_look_for():
    assert len(policies()) == 18


@pytest.mark.parametrize("policy", policies(), ids=lambda policy: policy.__name__)
def test_every_policy_has_a_row_that_names_its_options(policy):
    rows = [row for row in PAGES["policies"].splitlines() if row.startswith(f"| `{policy.__name__}(")]
    assert rows
    for field in dataclasses.fields(policy):
        assert any(re.search(rf"`{field.name}`", row) for row in rows), field.name


@pytest.mark.parametrize(
    ("owner", "field"), public_fields(ckpt_core.policies.Progress, ckpt_core.policies.RetentionContext)
)
def test_every_fact_that_policies_judge_by_is_named(owner, field):
    assert named("policies", owner)
    assert named("policies", field)


def examples():
    for page, text in PAGES.items():
        for number, code in enumerate(
            re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
        ):
            yield pytest.param(code, id=f"{page}-{number}")


@pytest.mark.parametrize("code", list(examples()))
def test_examples_run(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "example", "exec"), {"__name__": "__main__"})
