"""The table of docs/reliability.md: operations and faults, as a whole run of the crash matrix has just counted them.

`make crash` runs it, which adds a line for each cell to a file, and then this, which prints the table and puts it
into the page: `python tests/crash/table.py CELLS PAGE`.
"""

from __future__ import annotations

import json
import sys
from itertools import product
from pathlib import Path
from typing import Any

from crash.injection import FAULTS
from crash.operations import OPERATIONS

BEGIN, END = "<!-- matrix: begin -->", "<!-- matrix: end -->"
WRONG = ("lost", "torn", "stuck")
HEAD = ("operation", "fault", "points", "arrived", "lost", "torn", "next command failed")


def cells(lines: list[str]) -> list[dict[str, Any]]:
    """The last line of a cell counts."""
    last = {(each["operation"], each["fault"]): each for each in map(json.loads, lines)}
    return [last[cell] for cell in product(OPERATIONS, FAULTS) if cell in last]


def table(found: list[dict[str, Any]]) -> str:
    """Markdown: a row for each operation and fault, and one for all of them."""
    rows: list[tuple[Any, ...]] = [HEAD, ("---", "---", *["---:"] * 5)]
    rows += [
        (each["operation"], each["fault"], *(each[what] for what in ("points", "arrived", *WRONG)))
        for each in found
    ]
    sums = [sum(each[what] for each in found) for what in ("points", "arrived", *WRONG)]
    rows.append(("**all**", "", *(f"**{number:,}**" for number in sums)))
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)


def main(counts: str, page: str) -> int:
    """Prints and writes the table. 1 where anything was lost, torn or stuck."""
    found = cells(Path(counts).read_text(encoding="utf-8").splitlines())
    made = table(found)
    print(made)
    path = Path(page)
    before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    path.write_text(f"{before}{BEGIN}\n\n{made}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    return int(any(each[what] for each in found for what in WRONG))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
