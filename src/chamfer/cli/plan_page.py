"""How an advice is shown: table, sentence, picture, page, and the settings file that builds it."""

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
    """Head and rows: what was measured, and how many candidates are expected to be needed in the whole corpus."""
    from chamfer.indexing.planning.candidate_recall import TARGETS, recall
    from chamfer.indexing.planning.recommendation import needed_at

    depths = (10, 50, 100, 200)
    head = ["source", *(f"R10@{d}" for d in depths), "R100@500", "growth", *(f"{t:.0%} needs" for t in TARGETS)]
    head += ["bytes/doc", "learn s", "build ms/doc", "query ms", *(["nDCG@10"] if ndcg else [])]
    rows = []
    for each in advice.measured:
        needs = needed_at(each, advice.sample, advice.n_documents)
        row = [each.name, *(f"{each.kept * recall(each.ranks_10, d):.3f}" for d in depths)]
        row.append(f"{recall(each.ranks_100, 500):.3f}")
        row += [f"{each.exponent:.2f}", *("-" if n is None else f"{n:,}" for n in needs.values())]
        row += [
            f"{each.costs.bytes_per_document:,.0f}",
            f"{each.costs.learn_s:.1f}",
            f"{each.costs.build_ms:.2f}",
            f"{each.costs.query_ms:.2f}",
        ]
        rows.append([*row, *([f"{ndcg[each.name]:.4f}"] if ndcg else [])])
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
    what = chosen.measured.name + ("" if chosen.measured.direct else f" with {chosen.depth} candidates")
    falls = n_sample < advice.n_documents and not chosen.measured.direct
    worst = f" ({chosen.recall_at_worst:.1%} if it falls as fast as it can)" if falls else ""
    return (
        f"Recommended: {what}: {chosen.recall:.1%} of the exact top 10{worst}, {chosen.query_ms:.2f} ms a query, "
        f"{chosen.bytes_per_document:,.0f} bytes a document with the token vectors; {advice.reason}. {measured}"
    )


def picture(advice: Advice) -> bytes:
    """Share of the exact top 10 that is lost, against milliseconds a query: PNG. A point's area: its source's bytes."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    from chamfer.indexing.planning.recommendation import pareto

    figure, axes = pyplot.subplots(figsize=(11, 6), layout="constrained")
    colours = pyplot.get_cmap("tab20").colors
    for number, each in enumerate(advice.measured):
        own = [option for option in advice.options if option.measured is each]
        colour = colours[number % len(colours)]
        marker = "*" if each.direct else "os^vDP"[number // len(colours) % 6]
        area = 15 + each.costs.bytes_per_document / 100
        axes.plot([o.query_ms for o in own], [_lost(o) for o in own], color=colour, linewidth=0.8)
        label = f"{each.name}, {each.costs.bytes_per_document:,.0f} B"
        axes.scatter([o.query_ms for o in own], [_lost(o) for o in own], area, [colour], marker=marker, label=label)
    front = pareto(advice.options)
    axes.plot([o.query_ms for o in front], [_lost(o) for o in front], color="black", linewidth=0.8, linestyle=":")
    if advice.chosen is not None:
        place = advice.chosen.query_ms, _lost(advice.chosen)
        axes.plot(*place, marker="o", markersize=18, fillstyle="none", color="red", linestyle="", label="recommended")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.invert_yaxis()
    axes.set_xlabel(f"ms a query, one thread, {advice.n_documents:,} documents, without encoding the query")
    ticks = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, _LOSS_SHOWN)
    axes.set_yticks(ticks, [*(f"{1 - tick:.1%}" for tick in ticks[:-1]), "99.9% or more"])
    axes.minorticks_off()
    axes.set_ylabel("share of the exact top 10 that is found")
    axes.grid(alpha=0.3)
    legend = axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5))
    for handle in legend.legend_handles[: len(advice.measured)]:
        handle.set_sizes([25])
    out = BytesIO()
    figure.savefig(out, format="png", dpi=110, metadata={"Software": None})
    pyplot.close(figure)
    return out.getvalue()


def page(advice: Advice, settings: str, png: bytes, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """One self-contained HTML page: the choice, the picture and the table."""
    cells = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    choice = f"<pre>{escape(settings)}</pre>" if settings else ""
    said = "".join(f"<li>{escape(remark)}</li>" for remark in advice.remarks)
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>Chamfer plan</title><style>{_STYLE}</style>"
        f"<h1>First stages for {advice.n_documents:,} documents</h1><p>{escape(summary(advice))}</p>{choice}"
        f"<img alt='Recall against time' src='data:image/png;base64,{base64.b64encode(png).decode()}'>"
        "<p>R10@d: share of the exact top 10 among d candidates of the sample. Growth g: candidates needed grow as the "
        "collection to the power g, from nested parts of the sample; the columns of needs are so extrapolated. A union "
        "counts the candidates of all its sources. Lines join the depths 50, 100, 200, 500 and 1000; the dotted line "
        f"is the front; a point's area is its source's bytes a document.</p><ul>{said}</ul>"
        f"<table><tr>{''.join(f'<th>{escape(h)}</th>' for h in head)}</tr>{cells}</table></html>\n"
    )


def as_json(advice: Advice) -> list[dict[str, Any]]:
    """Every option as plain values."""
    from chamfer.indexing.planning.recommendation import Option

    names = [field.name for field in fields(Option) if field.name != "measured"]
    return [{"source": o.measured.name} | {name: getattr(o, name) for name in names} for o in advice.options]


def toml(tree: Mapping[str, Any]) -> str:
    """Nested mappings of strings, numbers, truth values and lists of strings as TOML. Empty tables are left out."""
    return "\n".join(_lines(tree, "")) + "\n"


def _lines(tree: Mapping[str, Any], place: str) -> Iterator[str]:
    values = {key: value for key, value in tree.items() if not isinstance(value, Mapping)}
    if values:
        yield f"[{place}]"
        yield from (f"{key} = {json.dumps(value)}" for key, value in values.items())
        yield ""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _lines(value, f"{place}.{key}" if place else key)


def _lost(option: Option) -> float:
    return max(1 - option.recall, _LOSS_SHOWN)
