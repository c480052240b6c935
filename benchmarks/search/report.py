"""Writer of docs/search.md from the runs, and of a page of curves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from .landscapes import HOLD_OUTS, LANDSCAPES
from .methods import NAMES
from .run import Run

ROOT = Path(__file__).resolve().parents[2]
MARKS = (10, 20, 40, 80)
OVERPROMISED = 1.03
"""Ratio above which a promise does not hold. A claim's accuracy is 3 % (study/confirm.py)."""

REPORTED = (*NAMES, "before")
COLOURS = ("#8a8a8a", "#b07aa1", "#e15759", "#f28e2b", "#4e79a7", "#1b7837", "#76b7b2")


def write_report(runs: Sequence[Run]) -> None:
    names = [name for name in LANDSCAPES if any(n.landscape == name for n in runs)]
    text = (ROOT / "docs" / "search.md").read_text() if (ROOT / "docs" / "search.md").is_file() else HEAD
    before = text.split(BEGIN)[0]
    parts = [_targets(runs, names), "", _curves(runs, names), "", _picks(runs, names)]
    (ROOT / "docs" / "search.md").write_text(before + BEGIN + "\n" + "\n".join(parts) + "\n")
    figure(runs, names).write_html(ROOT / "docs" / "search.html", include_plotlyjs="cdn")
    print("docs/search.md, docs/search.html")


HEAD = "# The search against its peers\n\n"
BEGIN = "<!-- from here on by `python -m benchmarks.search report` -->"


def _of(runs: Sequence[Run], landscape: str, method: str) -> list[Run]:
    """Select one run for each seed. The curve of a longer run contains that of a shorter one."""
    longest: dict[int, Run] = {}
    for n in sorted(runs, key=lambda n: n.starts):
        if (n.landscape, n.method) == (landscape, method):
            longest[n.seed] = n
    return list(longest.values())


def overpromises(run: Run) -> bool:
    return run.pick == 0 or (run.claimed is not None and run.claimed > OVERPROMISED)


def _header(*titles: str) -> list[str]:
    return [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]


def _targets(runs: Sequence[Run], names: Sequence[str]) -> str:
    """Render the aims and how the product's own search met them."""
    rows = _header(
        "landscape (seeds)", "median at 20, ≥ .97", "median at 40, ≥ .985", "over-promised, ≤ 2 %",
        "claim against truth, within 2 %", "time in refused starts, ≤ 10 %", "GPU-hours",
    )  # fmt: skip
    for name in names:
        found = [n for n in runs if (n.landscape, n.method, n.starts) == (name, "ours", 40)]
        if not found:
            continue
        at = [float(np.median([n.at(mark) for n in found])) for mark in (20, 40)]
        over = float(np.mean([overpromises(n) for n in found]))
        claims = [n.claimed - 1 for n in found if n.claimed is not None]
        refused = sum(n.refused_hours for n in found) / sum(n.gpu_hours for n in found)
        claim = float(np.mean(claims)) if claims else float("nan")
        cells = [
            _met(f"{at[0]:.3f}", at[0] >= 0.97),
            _met(f"{at[1]:.3f}", at[1] >= 0.985),
            _met(f"{over:.0%}", over <= 0.02),
            _met(f"{claim:+.1%}", abs(claim) <= 0.02),
            _met(f"{refused:.0%}", refused <= 0.10),
        ]
        hours = np.median([n.gpu_hours for n in found])
        kind = "hold-out, " if name in HOLD_OUTS else ""
        rows.append(f"| {name} ({kind}{len(found)}) | {' | '.join(cells)} | {hours:.1f} |")
    return "\n".join(rows)


def _met(text: str, met: bool) -> str:
    return text if met else f"**{text}** missed"


def _curves(runs: Sequence[Run], names: Sequence[str]) -> str:
    rows = _header("landscape", "method", *(f"{mark} starts" for mark in MARKS), "refused", "seeds")
    for name in names:
        for method in REPORTED:
            found = _of(runs, name, method)
            if not found:
                continue
            cells = []
            for mark in MARKS:
                shares = [n.at(mark) for n in found if n.starts >= mark]
                low = np.percentile(shares, 10) if shares else 0.0
                few = "" if len(shares) == len(found) else f" n={len(shares)}"
                cells.append(f"{np.median(shares):.3f} ({low:.3f}){few}" if shares else "–")
            refused = np.mean([n.refused / n.done for n in found if n.done])
            rows.append(f"| {name} | {method} | {' | '.join(cells)} | {refused:.0%} | {len(found)} |")
    return "\n".join(rows)


def _picks(runs: Sequence[Run], names: Sequence[str]) -> str:
    rows = _header(
        "landscape", "method", "what its pick truly sustains", "over-promised", "says, against the truth", "GPU-hours",
        "of them refused", "seeds",
    )  # fmt: skip
    for name in names:
        for method in REPORTED:
            found = [n for n in runs if (n.landscape, n.method, n.starts) == (name, method, 40)]
            if not found:
                continue
            picks = [n.pick for n in found]
            claims = [n.claimed - 1 for n in found if n.claimed is not None]
            rows.append(
                f"| {name} | {method} | {np.median(picks):.3f} ({np.percentile(picks, 10):.3f}) "
                f"| {np.mean([overpromises(n) for n in found]):.0%} "
                f"| {f'{np.mean(claims):+.1%}' if claims else '–'} | {np.median([n.gpu_hours for n in found]):.1f} "
                f"| {sum(n.refused_hours for n in found) / sum(n.gpu_hours for n in found):.0%} | {len(found)} |"
            )
    return "\n".join(rows)


def figure(runs: Sequence[Run], names: Sequence[str]) -> go.Figure:
    """Draw medians over runs of 40 starts: by starts on the left, by GPU-hours on the right."""
    runs = [n for n in runs if n.starts == 40]
    titles = [f"{name}, by {axis}" for name in names for axis in ("starts", "GPU-hours")]
    made = make_subplots(rows=max(1, len(names)), cols=2, subplot_titles=titles)
    for row, name in enumerate(names, 1):
        longest = max(n.gpu_hours for n in runs if n.landscape == name)
        axes: tuple[tuple[Sequence[float], Callable[[Run, float], float]], ...] = (
            (range(1, max(n.starts for n in runs if n.landscape == name) + 1), lambda n, x: n.at(int(x))),
            ([float(x) for x in np.linspace(0, longest, 80)], lambda n, x: n.at_hours(x)),
        )
        for method, colour in zip(REPORTED, COLOURS, strict=True):
            found = _of(runs, name, method)
            for col, (points, share) in enumerate(axes, 1):
                if found:
                    medians = [round(float(np.median([share(n, x) for n in found])), 4) for x in points]
                    line = go.Scatter(x=list(points), y=medians, name=method, legendgroup=method,
                                      showlegend=row == col == 1, line={"color": colour, "shape": "hv"})  # fmt: skip
                    made.add_trace(line, row=row, col=col)
    made.update_yaxes(range=[0.6, 1.02])
    made.update_layout(height=230 * max(1, len(names)), title="Best truly feasible QPS, as a share of the optimum")
    return made
