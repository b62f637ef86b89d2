"""The table of docs/exactness.md: adapters and cases, as the contract's tests have just found them.

`make exact` runs the tests, which add a line for each cell to a file, and then this, which prints the table and puts
it into the page: `python tests/contract/exactness.py CELLS PAGE`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from contract.adapter import KILLS

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def table(lines: list[str]) -> str:
    """Markdown: an adapter a row, a case a column; the last line of a cell counts.

    Frameworks come in the order in which they were tested, each with what is ours first.
    """
    found = [json.loads(line) for line in lines]
    groups = list(dict.fromkeys(each["group"] for each in found))
    rows = sorted({(groups.index(each["group"]), not each["ours"], each["adapter"]) for each in found})
    cells = {(each["adapter"], each["case"]): each["outcome"] for each in found}
    written = [["", *(f"killed: {case}" for case in KILLS)], ["---"] * (len(KILLS) + 1)]
    for _, others, adapter in rows:
        name = adapter if others else f"**{adapter}, this package**"
        written.append([name, *(cells.get((adapter, case), "not run") for case in KILLS)])
    return "\n".join(f"| {' | '.join(row)} |" for row in written)


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
