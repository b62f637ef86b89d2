"""The table of docs/exactness.md: adapters and cases, as the contract's tests have just found them.

`make exact` runs the tests, which add a line for each cell to a file, and then this, which prints the table and puts
it into the page: `python tests/contract/exactness.py CELLS PAGE`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def table(lines: list[str]) -> str:
    """Markdown: an adapter a row in the order of the lines, a case a column; the last line of a cell counts."""
    cells = {(adapter, case): outcome for adapter, case, outcome in map(json.loads, lines)}
    adapters = list(dict.fromkeys(adapter for adapter, _ in cells))
    cases = list(dict.fromkeys(case for _, case in cells))
    rows = [["", *(f"killed: {case}" for case in cases)], ["---"] * (len(cases) + 1)]
    rows += [[adapter, *(cells.get((adapter, case), "not run") for case in cases)] for adapter in adapters]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main(cells: str, page: str) -> int:
    """Prints and writes the table. 1 where one of our own adapters is not exact."""
    made = table(Path(cells).read_text(encoding="utf-8").splitlines())
    print(made)
    path = Path(page)
    before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    path.write_text(f"{before}{BEGIN}\n\n{made}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    return int("NOT EXACT" in made)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
