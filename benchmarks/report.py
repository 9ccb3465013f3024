"""Writes docs/benchmarks.md: the full results of every benchmark, as a table and a plot.

    python -m benchmarks.report [SUBJECT ...] [--data DIR] [--update] [--draw-only] [-- OPTION ...]

The rows of a subject are stored in docs/benchmarks/SUBJECT.json, so that subjects can be measured one at a time; the
page and the plots are made from those files. --draw-only measures nothing. --data names a folder of BEIR collections
for the subjects that use them; without it they run on the shipped corpus alone. Options after -- are passed to the
programs of the named subjects. --update keeps the rows of the previous run that this run did not measure, and the page
then names both runs.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np

from benchmarks import SUBJECTS, module_of
from benchmarks.harness import Row, machine, markdown

DOCS = Path(__file__).resolve().parents[1] / "docs"
RESULTS = DOCS / "benchmarks"
QUALITY_SETS = ("fairytaleqa", "scifact", "cranfield", "nfcorpus-stopped", "npl", "cisi", "squad-dev")
SIX_SETS = ("scifact", "cranfield", "fairytaleqa", "squad-dev", "cisi", "npl")
SETS = {"quality": QUALITY_SETS, "feedback": SIX_SETS, "late": SIX_SETS, "growth": SIX_SETS, "candidates": SIX_SETS[:4]}
HEAD = """# Benchmarks

Every figure comes from a program in `benchmarks/`; `python -m benchmarks.report` writes this page. Peers run on the
same input in the same run, interleaved with Chamfer. Times are medians, with the range in brackets; a ratio above 1
means that Chamfer is better. Times are CPU time of one thread unless the subject says otherwise. The machines were
shared with other work, so ratios are more reliable than absolute times.
"""


def main() -> None:
    """Measures the named subjects (all if none is named) and writes the page."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("subjects", nargs="*", help="all if none is named")
    arguments.add_argument("--data", type=Path, help="folder of BEIR collections")
    arguments.add_argument("--update", action="store_true", help="keep earlier rows that are not measured again")
    arguments.add_argument("--draw-only", action="store_true", help="write the page from the stored rows")
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    options, more = arguments.parse_args(sys.argv[1:end]), sys.argv[end + 1 :]
    if unknown := set(options.subjects) - set(SUBJECTS):
        arguments.error(f"unknown subjects {sorted(unknown)}; known: {', '.join(SUBJECTS)}")
    RESULTS.mkdir(exist_ok=True)
    if not options.draw_only:
        for subject in options.subjects or SUBJECTS:
            measure(subject, options.data, more, update=options.update)
    draw()


def measure(subject: str, data: Path | None, more: list[str], *, update: bool) -> None:
    """Runs one subject in full and stores its rows."""
    named: list[str] = []
    if data is not None and subject in SETS:
        set_names = SETS[subject]
        named = [str(data / name) for name in set_names if (data / name).is_dir()]
    elif data is not None and subject == "encoder":
        named = ["--quality", str(data / "scifact")]
    elif data is not None and subject == "cet_real":
        named = [str(data / "cranfield")]
    print(f"measuring {subject}", file=sys.stderr)
    command = [sys.executable, "-m", module_of(subject), "--json", *named, *more]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    if not json.loads(done.stdout):
        print(f"{subject} measured nothing; its stored rows are unchanged", file=sys.stderr)
        return
    shown = shlex.join(["python", "-m", module_of(subject), *(Path(word).name for word in [*named, *more])])
    record = {"machine": machine(), "command": shown, "rows": json.loads(done.stdout)}
    path = RESULTS / f"{subject}.json"
    if update and path.exists():
        record = updated(json.loads(path.read_text(encoding="utf-8")), record)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def updated(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The new rows, and the old rows whose title (before the colon) they lack; collections keep their order."""
    measured = {row["what"].partition(": ")[0] for row in new["rows"]}
    rows = [row for row in old["rows"] if row["what"].partition(": ")[0] not in measured] + new["rows"]
    order = list(dict.fromkeys(row["what"].split()[0] for row in rows))
    rows.sort(key=lambda row: order.index(row["what"].split()[0]))
    return {
        "machine": f"{old['machine']}; then {new['machine']}",
        "command": f"{old['command']}; then {new['command']}",
        "rows": rows,
    }


def draw() -> None:
    """Writes the page and one plot per subject from the stored rows."""
    parts = [HEAD]
    for subject in SUBJECTS:
        path = RESULTS / f"{subject}.json"
        if not path.exists():
            continue
        record = json.loads(path.read_text(encoding="utf-8"))
        rows = [Row(**row) for row in record["rows"]]
        module = import_module(module_of(subject))
        about = (module.__doc__ or "").split("\n\n")[0].replace("\n", " ")
        plot, table = DRAWN.get(subject, (getattr(module, "plot", plot_ratios), getattr(module, "table", markdown)))
        parts.append(f"## {subject}\n\n{about}\n\n`{record['command']}`, {record['machine']}\n")
        if save(plot, rows, RESULTS / f"{subject}.svg"):
            parts.append(f"![{subject}]({RESULTS.name}/{subject}.svg)\n")
        parts.append(table(rows))
    (DOCS / "benchmarks.md").write_text("\n".join(parts), encoding="utf-8")


def save(plot: Callable[[Any, list[Row]], bool], rows: list[Row], path: Path) -> bool:
    """Draws a plot into an SVG file; returns False if there was nothing to draw."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "chamfer"  # the same rows give the same file
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 4), layout="constrained")
    drawn = plot(axes, rows)
    if drawn:
        figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    return drawn


def plot_ratios(axes: Any, rows: list[Row]) -> bool:
    """One bar per ratio, on a logarithmic scale around 1."""
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    chosen = [row for row in rows if row.ratio is not None][::-1]
    names = [fill(f"{row.what.partition(' [')[0]} vs {row.peer}", 56) for row in chosen]
    ratios = [row.ratio or 1.0 for row in chosen]
    if not chosen:
        return False
    axes.figure.set_size_inches(9, 1 + 0.42 * len(chosen))
    axes.barh(names, [r - 1 for r in ratios], left=1, color=["#4c78a8" if r >= 1 else "#e45756" for r in ratios])
    axes.set_xscale("log")
    axes.set_xlim(min([*ratios, 0.8]) / 1.3, max([*ratios, 1.25]) * 1.3)
    axes.set_xticks([t for t in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50) if min(ratios) / 1.3 < t < max(ratios) * 1.3])
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("times better than the peer")
    axes.tick_params(axis="y", labelsize=7)
    for position, ratio in enumerate(ratios):
        axes.annotate(f" {ratio:.2f}", (max(ratio, 1), position), fontsize=7, va="center")
    return True


def plot_quality(axes: Any, rows: list[Row]) -> bool:
    """nDCG@10 of every plan, grouped by corpus."""
    cells = _cells(rows)
    corpora = list(dict.fromkeys(corpus for corpus, _ in cells))
    plans = list(dict.fromkeys(plan for _, plan in cells))
    width = 0.8 / max(len(plans), 1)
    for number, plan in enumerate(plans):
        heights = [cells.get((corpus, plan), {}).get("nDCG@10", 0.0) for corpus in corpora]
        axes.bar([position + number * width for position in range(len(corpora))], heights, width, label=plan)
    axes.set_xticks([position + 0.4 - width / 2 for position in range(len(corpora))], corpora, fontsize=8)
    axes.set_ylabel("nDCG@10")
    axes.legend(fontsize=8, ncols=len(plans))
    return bool(cells)


def quality_table(rows: list[Row]) -> str:
    """One line per corpus and plan."""
    lines = [
        "| corpus | plan | nDCG@10 | R@100 | p50 ms | bytes per document |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for (corpus, plan), cell in _cells(rows).items():
        figures = f"{cell['nDCG@10']:.4f} | {cell['R@100']:.4f} | {cell['p50']:.1f} | {cell['bytes']:,.0f}"
        lines.append(f"| {corpus} | {plan} | {figures} |")
    rates = [f"{row.what}: {row.value:.0f} {row.unit}" for row in rows if ": build of" in row.what]
    return "\n".join([*lines, "", *(f"- {rate}" for rate in rates), ""])


def plot_feedback(axes: Any, rows: list[Row]) -> bool:
    """The gain in nDCG@10 over the plan without feedback, by mode, for every collection and partner channel."""
    cells = _cells([row for row in rows if "cost" not in row.what])
    groups = list(dict.fromkeys((corpus, plan.split()[0]) for corpus, plan in cells))
    modes = [mode for mode in ("before", "after", "both", "guarded", "rm3") if any(mode in plan for _, plan in cells)]
    width = 0.8 / max(len(modes), 1)
    for number, mode in enumerate(modes):
        gains = [
            cells.get((corpus, f"{pair} {mode}"), {}).get("nDCG@10", np.nan) - cells[corpus, f"{pair} none"]["nDCG@10"]
            for corpus, pair in groups
        ]
        axes.bar([position + number * width for position in range(len(groups))], gains, width, label=mode)
    names = [f"{corpus}\n{pair}" for corpus, pair in groups]
    axes.set_xticks([position + 0.4 - width / 2 for position in range(len(groups))], names, fontsize=6)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_ylabel("nDCG@10 gained by feedback")
    axes.legend(fontsize=8, ncols=len(modes))
    return bool(cells)


def feedback_table(rows: list[Row]) -> str:
    """One line per collection, pair and mode; a p-value follows figures that differ from `none` at the 0.05 level."""
    lines = ["| corpus | pair | mode | nDCG@10 | AP | R@100 |", "| --- | --- | --- | --- | --- | --- |"]
    for (corpus, plan), cell in _cells(
        [row for row in rows if "cost" not in row.what and ": p " not in row.what]
    ).items():
        pair, _, mode = plan.partition(" ")
        p_values = {
            r.unit + r.what.split(": p ")[1]: r.value for r in rows if r.what.startswith(f"{corpus} {plan}: p ")
        }
        shown = []
        for measure in ("nDCG@10", "AP", "R@100"):
            p = p_values.get(f"p{measure}", 1.0)
            shown.append(f"{cell[measure]:.4f}" + (f" (p {p:.3f})" if p < 0.05 else ""))
        lines.append(f"| {corpus} | {pair} | {mode} | {' | '.join(shown)} |")
    return "\n".join([*lines, "", markdown([row for row in rows if "cost" in row.what])])


DRAWN: dict[str, tuple[Callable[[Any, list[Row]], bool], Callable[[list[Row]], str]]] = {
    "quality": (plot_quality, quality_table),
    "feedback": (plot_feedback, feedback_table),
}


def _cells(rows: list[Row]) -> dict[tuple[str, str], dict[str, float]]:
    """(corpus, plan) -> value by the first word of the measure (nDCG@10, p50, bytes, ...)."""
    cells: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        subject, _, measure = row.what.partition(": ")
        corpus, _, plan = subject.partition(" ")
        if plan:
            cells.setdefault((corpus, plan), {})[measure.split()[0]] = row.value
    return cells


if __name__ == "__main__":
    main()
