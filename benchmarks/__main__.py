"""`python -m benchmarks`: runs the figures, prints the table, writes `results.json`, plots and the page."""

from __future__ import annotations

import argparse
import datetime
import importlib
import importlib.util
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import earlier, machine, plots, report
from benchmarks.results import Results, Settings

ROOT = Path(__file__).parents[1]
GROUPS = (
    "save",
    "stall",
    "load",
    "dedup",
    "compression",
    "memory",
    "catalog",
    "startup",
    "training",
    "growth",
)
WITHOUT_TORCH = ("compression", "catalog", "startup")
PARTIAL = ROOT / "build" / "benchmarks"


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when everything ran, whatever the figures say."""
    options = _parser().parse_args(arguments)
    chosen = options.again or options.only
    groups = [name for name in GROUPS if chosen is None or name in chosen]
    rounds = options.rounds or (1 if options.quick else 5)
    whole = not options.quick and options.only is None and options.out is None
    before = earlier.read(ROOT / "benchmarks" / "results.json") if options.again else None
    out = ROOT / "benchmarks" if whole else options.out or PARTIAL
    images = ROOT / "docs" / "img" if whole else out / "img"
    out.mkdir(parents=True, exist_ok=True)
    warnings.filterwarnings("ignore")  # of the neighbours
    work = Path(tempfile.mkdtemp(prefix="ckpt-benchmarks-", dir=options.work)).resolve()
    absent = plots.missing()

    def write(results: Results) -> None:
        if before is not None:
            results = earlier.put_in(before, results, GROUPS)
        report.write_json(results, out / "results.json")
        text = report.page(results, [] if absent else plots.draw(results, images))
        if whole:
            report.put_between(text, ROOT / "docs" / "performance.md")
        else:
            (out / "measured.md").write_text(text + "\n", "utf-8")

    try:
        results = _measure(groups, Settings(options.quick, rounds, work), write)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(report.table(results))
    if absent:
        print(absent)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measures this engine against its neighbours and the machine's limits.",
        epilog="A whole run writes benchmarks/results.json, docs/img and docs/performance.md; any other run writes "
        "to build/benchmarks, or to --out.",
    )
    parser.add_argument(
        "--quick", action="store_true", help="small states, few rounds: for function, not for speed"
    )
    parser.add_argument("--only", action="append", choices=GROUPS, metavar="GROUP",
                        help=f"one of {', '.join(GROUPS)}; may be repeated")  # fmt: skip
    parser.add_argument("--again", action="append", choices=GROUPS, metavar="GROUP",
                        help="this group alone, in the place of what the last whole run found")  # fmt: skip
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds of each race (5; 1 with --quick)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where results.json, measured.md and img/ go")
    parser.add_argument("--work", type=Path, metavar="DIR",
                        help="a folder on the disk to be measured (the system's temporary folder)")  # fmt: skip
    return parser


def _measure(groups: Sequence[str], settings: Settings, write: Callable[[Results], None]) -> Results:
    """`write` is called after each group: a run that is interrupted leaves what it has measured."""
    results = Results()
    began = datetime.datetime.now(datetime.UTC)
    load = machine.load_average()
    results.facts |= {
        "date": began.isoformat(timespec="seconds"),
        "options": {"quick": settings.quick, "rounds": settings.rounds, "groups": list(groups)},
        "machine": machine.describe(settings.work),
        "versions": machine.versions(),
        "neighbours": machine.neighbour_facts(),
    }
    begin = time.monotonic()
    for name in groups:
        print(f"{time.monotonic() - begin:6.0f} s  {name}", file=sys.stderr, flush=True)
        if name not in WITHOUT_TORCH and importlib.util.find_spec("torch") is None:
            results.not_measured(name, f"the group {name}", "PyTorch is not installed: pip install torch")
            continue
        importlib.import_module(f"benchmarks.{name}").run(settings, results)
        results.facts["seconds"] = round(time.monotonic() - begin, 1)
        results.facts["load_average"] = [load, machine.load_average()]
        write(results)
    return results


if __name__ == "__main__":
    sys.exit(main())
