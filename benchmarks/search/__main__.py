"""Command line of the search benchmark.

    python -m benchmarks.search tabulate NAME … | run --landscapes … --methods … --seeds 0-19 --starts 40 | report

`run` appends one line for each run to results.jsonl and skips runs that are there already. `report` writes the
tables of docs/search.md, and docs/search.html.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from .landscapes import LANDSCAPES
from .methods import NAMES
from .report import write_report
from .run import Run, run_method
from .table import share_refused, tabulate

RESULTS = Path(__file__).with_name("results.jsonl")


def kept() -> list[Run]:
    lines = RESULTS.read_text().splitlines() if RESULTS.is_file() else []
    return [Run.from_json(json.loads(line)) for line in lines]


def _tabulate(names: list[str]) -> None:
    for name in names:
        landscape, began = LANDSCAPES[name], time.monotonic()
        plan = landscape.plan(Path(tempfile.mkdtemp()), 1, 0, 0)
        table = tabulate(landscape, plan)
        table.write(name)
        seconds = time.monotonic() - began
        print(f"{name}: {table.optimum:.2f}/s with {table.best.as_dict()}, {share_refused(landscape, plan):.0%} of the "
              f"space refused, {seconds:.0f} s", flush=True)  # fmt: skip


def _run(landscapes: list[str], methods: list[str], seeds: range, starts: int) -> None:
    done = {(n.landscape, n.method, n.seed, n.starts) for n in kept()}
    for key in _keys(landscapes, methods, seeds, starts):
        if key in done:
            continue
        began = time.process_time()
        found = run_method(*key)
        with RESULTS.open("a") as file:
            file.write(json.dumps(found.as_json(), separators=(",", ":")) + "\n")
        print(f"{found.landscape} {found.method} {found.seed}: best {found.at(starts):.3f}, pick {found.pick:.3f}, "
              f"claimed {found.claimed}, {time.process_time() - began:.1f} s", flush=True)  # fmt: skip


def _keys(landscapes: list[str], methods: list[str], seeds: range, starts: int) -> Iterator[tuple[str, str, int, int]]:
    """Order the runs seed by seed, so that an interrupted run has every method on every landscape."""
    yield from ((name, how, seed, starts) for seed in seeds for how in methods for name in landscapes)


def _seeds(text: str) -> range:
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("tabulate", "run", "report"))
    parser.add_argument("names", nargs="*", help="landscapes to tabulate")
    parser.add_argument("--landscapes", nargs="+", choices=list(LANDSCAPES), default=list(LANDSCAPES))
    parser.add_argument("--methods", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--seeds", type=_seeds, default=_seeds("0-19"))
    parser.add_argument("--starts", type=int, default=40)
    given = parser.parse_args()
    if given.what == "tabulate":
        _tabulate(given.names or list(LANDSCAPES))
    elif given.what == "run":
        _run(given.landscapes, given.methods, given.seeds, given.starts)
    else:
        write_report(kept())


if __name__ == "__main__":
    main()
