"""What holds for all pages: links lead somewhere, and lists of names are complete. Their code is run elsewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import ckpt_core
from ckpt_core import errors

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\((?!\w+://)([^)\s#]*)(?:#([^)\s]+))?\)")


def text_of(page):
    """A page without its code, which may look like anything."""
    return re.sub(r"^( *)```.*?^\1```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors_of(page):
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", text_of(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    broken = []
    for path, anchor in LINK.findall(text_of(page)):
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors_of(target)):
            broken.append(f"{path}#{anchor}" if anchor else path)
    assert broken == []


def test_the_index_has_every_page():
    linked = {path for path, _ in LINK.findall(text_of(ROOT / "docs" / "index.md"))}
    assert {page.name for page in PAGES[1:]} - {"index.md"} <= linked


def test_the_tutorial_has_every_error_and_its_builtin():
    table = re.findall(
        r"^\| `(\w+)` \| `(\w+)` \|", text_of(ROOT / "docs" / "tutorial.md"), flags=re.MULTILINE
    )
    public = {name for name in errors.__all__ if hasattr(ckpt_core, name)} - {"CkptError"}
    assert {name for name, _ in table} == public
    for name, builtin in table:
        assert builtin in {base.__name__ for base in getattr(errors, name).__mro__}
