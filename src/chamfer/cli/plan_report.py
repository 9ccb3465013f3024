"""How the planner's advice is presented: table, summary, plot, HTML page, JSON, and a settings file to build with."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from html import escape
from io import BytesIO
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chamfer.indexing.planning.recommendation import Advice, Option

_STYLE = (
    "body{font:15px system-ui;max-width:75rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;font-size:13px}"
    "td,th{padding:.2rem .6rem;text-align:right;border-bottom:1px solid #ddd}"
    "td:first-child,th:first-child{text-align:left}"
    "pre{background:#f4f4f4;padding:1rem}img{max-width:100%}"
)
_LOSS_SHOWN = 1e-3


def table(advice: Advice, ndcg: Mapping[str, float]) -> tuple[list[str], list[list[str]]]:
    """(column names, rows): what was measured, and how many candidates the whole corpus is expected to need."""
    from chamfer.indexing.planning.candidate_recall import TARGETS, recall
    from chamfer.indexing.planning.recommendation import needed_at

    depths = (10, 50, 100, 200)
    head = ["source", *(f"R10@{d}" for d in depths), "R100@500", "growth", *(f"{t:.0%} needs" for t in TARGETS)]
    head += ["bytes/doc", "learn s", "build ms/doc", "query ms", *(["nDCG@10"] if ndcg else [])]
    rows = []
    for source in advice.measured:
        needs = needed_at(source, advice.sample, advice.n_documents)
        row = [source.name, *(f"{source.kept * recall(source.ranks_10, d):.3f}" for d in depths)]
        row.append(f"{recall(source.ranks_100, 500):.3f}")
        row += [f"{source.exponent:.2f}", *("-" if n is None else f"{n:,}" for n in needs.values())]
        row += [
            f"{source.costs.bytes_per_document:,.0f}",
            f"{source.costs.learn_s:.1f}",
            f"{source.costs.build_ms:.2f}",
            f"{source.costs.query_ms:.2f}",
        ]
        rows.append([*row, *([f"{ndcg[source.name]:.4f}"] if ndcg else [])])
    return head, rows


def summary(advice: Advice) -> str:
    """The recommendation in a few sentences."""
    n_sample = len(advice.sample.documents)
    measured = (
        f"Measured on {n_sample:,} of {advice.n_documents:,} documents with {len(advice.sample.queries)} queries."
    )
    chosen = advice.chosen
    if chosen is None:
        return f"No recommendation: {advice.reason}. {measured}"
    name = chosen.measured.name + ("" if chosen.measured.direct else f" with {chosen.depth} candidates")
    extrapolated = n_sample < advice.n_documents and not chosen.measured.direct
    worst = f" ({chosen.recall_at_worst:.1%} in the worst case of the extrapolation)" if extrapolated else ""
    return (
        f"Recommended: {name}: {chosen.recall:.1%} of the exact top 10{worst}, {chosen.query_ms:.2f} ms per query, "
        f"{chosen.bytes_per_document:,.0f} bytes per document including the token vectors; {advice.reason}. {measured}"
    )


def picture(advice: Advice) -> bytes:
    """PNG plot of the share of the exact top 10 found against ms per query; a point's area shows bytes per document."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    from chamfer.indexing.planning.recommendation import pareto

    figure, axes = pyplot.subplots(figsize=(11, 6), layout="constrained")
    colours = pyplot.get_cmap("tab20").colors
    for number, source in enumerate(advice.measured):
        options = [option for option in advice.options if option.measured is source]
        colour = colours[number % len(colours)]
        marker = "*" if source.direct else "os^vDP"[number // len(colours) % 6]
        area = 15 + source.costs.bytes_per_document / 100
        axes.plot([o.query_ms for o in options], [_lost(o) for o in options], color=colour, linewidth=0.8)
        label = f"{source.name}, {source.costs.bytes_per_document:,.0f} B"
        axes.scatter(
            [o.query_ms for o in options], [_lost(o) for o in options], area, [colour], marker=marker, label=label
        )
    front = pareto(advice.options)
    axes.plot([o.query_ms for o in front], [_lost(o) for o in front], color="black", linewidth=0.8, linestyle=":")
    if advice.chosen is not None:
        point = advice.chosen.query_ms, _lost(advice.chosen)
        axes.plot(*point, marker="o", markersize=18, fillstyle="none", color="red", linestyle="", label="recommended")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.invert_yaxis()
    axes.set_xlabel(f"ms per query, one thread, {advice.n_documents:,} documents, without encoding the query")
    ticks = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, _LOSS_SHOWN)
    axes.set_yticks(ticks, [*(f"{1 - tick:.1%}" for tick in ticks[:-1]), "99.9% or more"])
    axes.minorticks_off()
    axes.set_ylabel("share of the exact top 10 that is found")
    axes.grid(alpha=0.3)
    legend = axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5))
    for handle in legend.legend_handles[: len(advice.measured)]:
        handle.set_sizes([25])
    png = BytesIO()
    figure.savefig(png, format="png", dpi=110, metadata={"Software": None})
    pyplot.close(figure)
    return png.getvalue()


def page(advice: Advice, settings: str, png: bytes, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A self-contained HTML page with the recommendation, the plot and the table."""
    cells = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    choice = f"<pre>{escape(settings)}</pre>" if settings else ""
    remarks = "".join(f"<li>{escape(remark)}</li>" for remark in advice.remarks)
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>Chamfer plan</title><style>{_STYLE}</style>"
        f"<h1>First stages for {advice.n_documents:,} documents</h1><p>{escape(summary(advice))}</p>{choice}"
        f"<img alt='Recall against time' src='data:image/png;base64,{base64.b64encode(png).decode()}'>"
        "<p>R10@d: share of the exact top 10 among d candidates of the sample. Growth g: the number of candidates "
        "needed grows as the size of the collection to the power g, fitted on nested parts of the sample; the "
        "&quot;needs&quot; columns are extrapolated with it. A union counts the candidates of all its sources. Lines "
        "join the depths 50, 100, 200, 500 and 1000; the dotted line is the Pareto front; the area of a point shows "
        f"the bytes per document of its source.</p><ul>{remarks}</ul>"
        f"<table><tr>{''.join(f'<th>{escape(h)}</th>' for h in head)}</tr>{cells}</table></html>\n"
    )


def as_json(advice: Advice) -> list[dict[str, Any]]:
    """Every option (a source at a depth) as plain values."""
    from chamfer.indexing.planning.recommendation import Option

    names = [field.name for field in fields(Option) if field.name != "measured"]
    return [{"source": o.measured.name} | {name: getattr(o, name) for name in names} for o in advice.options]


def toml(tree: Mapping[str, Any]) -> str:
    """Nested mappings of strings, numbers, booleans and lists of strings as TOML. Empty tables are left out."""
    return "\n".join(_lines(tree, "")) + "\n"


def _lines(tree: Mapping[str, Any], table_name: str) -> Iterator[str]:
    values = {key: value for key, value in tree.items() if not isinstance(value, Mapping)}
    if values:
        yield f"[{table_name}]"
        yield from (f"{key} = {json.dumps(value)}" for key, value in values.items())
        yield ""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _lines(value, f"{table_name}.{key}" if table_name else key)


def _lost(option: Option) -> float:
    return max(1 - option.recall, _LOSS_SHOWN)
