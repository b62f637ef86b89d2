"""What can be had as plain records or as a table of pandas, polars or Arrow; and how it looks in a notebook."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from ckpt_core.errors import MissingExtraError

__all__ = ["Tabular", "html_table", "required"]

_SHOWN = 20


class Tabular(ABC):
    """Rows with named columns. pandas, polars and Arrow are imported when they are asked for, and not before."""

    @abstractmethod
    def columns(self) -> dict[str, Sequence[Any]]:
        """The columns, all of one length. Cells are plain values, None where there is nothing."""

    @abstractmethod
    def title(self) -> str:
        """What it is, in a few words."""

    def records(self) -> list[dict[str, Any]]:
        """A dict a row."""
        columns = {name: _plain(column) for name, column in self.columns().items()}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def to_pandas(self) -> Any:
        """A pandas DataFrame. Raises MissingExtraError."""
        return required("pandas", "pandas").DataFrame(dict(self.columns()))

    def to_polars(self) -> Any:
        """A polars DataFrame. Raises MissingExtraError."""
        return required("polars", "polars").DataFrame(dict(self.columns()), strict=False)

    def to_arrow(self) -> Any:
        """A pyarrow Table; a column of values of several kinds is one of texts. Raises MissingExtraError."""
        arrow = required("pyarrow", "arrow")

        def array(column: list[Any]) -> Any:
            try:
                return arrow.array(column)
            except (arrow.ArrowInvalid, arrow.ArrowTypeError):
                return arrow.array([None if cell is None else str(cell) for cell in column])

        return arrow.table({name: array(list(column)) for name, column in self.columns().items()})

    def _repr_html_(self) -> str:
        rows = self.records()
        more = f"<p>… and {len(rows) - _SHOWN} more</p>" if len(rows) > _SHOWN else ""
        return html_table(self.title(), list(self.columns()), [row.values() for row in rows[:_SHOWN]]) + more


def required(module: str, extra: str) -> Any:
    """An optional module. Raises MissingExtraError, which names the pip command."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"this needs {module.partition('.')[0]}: pip install 'ckpt-core[{extra}]'", extra=extra
        ) from error


def html_table(title: str, heads: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    """A table for a notebook. Whatever stands in it is text: nothing of it is taken for HTML."""
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    body = "".join(f"<tr>{''.join(f'<td>{escape(_cell(cell))}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><caption>{escape(title)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={_cell(each)}" for key, each in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_cell, value))
    return str(value)


def _plain(column: Sequence[Any]) -> list[Any]:
    """As Python's own values: what numpy holds is taken out of it."""
    tolist = getattr(column, "tolist", None)
    return list(tolist()) if tolist is not None else list(column)
