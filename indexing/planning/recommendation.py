"""Recommends one setting from measured first stages: extrapolates them to the whole corpus and applies the budgets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from chamfer.indexing.collection.recall_report import depth_in_sample
from chamfer.indexing.planning.candidate_recall import TARGETS, needed, recall
from chamfer.indexing.planning.planner import K, Measured, Sample, Source

DEPTHS = (50, 100, 200, 500, 1000)
_NEAR = 1.1  # options within this factor of the least time count as equally fast; the smallest of them wins
_NOTICEABLE = 0.01
_SHOWN = 100  # documents requested from a channel that has already scored its candidates


@dataclass(frozen=True, slots=True)
class Option:
    """A first stage with a number of candidates, at the full size of the corpus.

    recall               expected share of the exact top 10, by the measured growth exponent
    recall_at_worst      the same if wrong documents grow in proportion to the collection (growth exponent 1)
    query_ms             of one thread; the scan extrapolated linearly, plus MaxSim over `depth` documents
    bytes_per_document   including the token vectors
    """

    measured: Measured
    depth: int
    recall: float
    recall_at_worst: float
    query_ms: float
    bytes_per_document: float


@dataclass(frozen=True, slots=True)
class Budgets:
    """The lowest recall of the exact top 10, the most milliseconds per query and bytes per document; None: no limit."""

    floor: float = 0.99
    ms: float | None = None
    bytes: float | None = None


@dataclass(frozen=True, slots=True)
class Advice:
    """The planner's result, ready to print, draw and save. `chosen` is None if no option is within the budgets."""

    n_documents: int
    sample: Sample
    measured: Sequence[Measured]
    options: Sequence[Option]
    chosen: Option | None
    reason: str
    remarks: Sequence[str]


def advise(sample: Sample, measured: Sequence[Measured], n_documents: int, budgets: Budgets) -> Advice:
    """The whole advice for a corpus of n_documents."""
    choices = options(measured, sample, n_documents)
    chosen, reason = recommend(choices, budgets)
    return Advice(n_documents, sample, measured, choices, chosen, reason, remarks(measured))


def options(measured: Sequence[Measured], sample: Sample, n_documents: int) -> list[Option]:
    """Every source at every depth below the size of the corpus, and the direct sources."""
    n = len(sample.documents)
    choices = []
    for each in measured:
        scan = each.costs.query_ms * n_documents / n
        for depth in (K,) if each.direct else DEPTHS:
            if depth >= n_documents and not each.direct:
                continue
            expected, worst = (
                each.kept * recall(each.ranks_10, depth_in_sample(depth, n, n_documents, g))
                for g in (each.exponent, 1.0)
            )
            if each.direct:
                # Its order is final: exact MaxSim stays exact, and pooling loses the same share at any size.
                expected = worst = recall(each.ranks_10, K)
            rescore_ms = sample.rescore_ms if each.rescore_ms is None else each.rescore_ms
            ms = scan if each.direct else scan + rescore_ms * depth / 1000
            size = each.costs.bytes_per_document + (0 if each.holds_tokens else sample.token_bytes)
            choices.append(Option(each, depth, expected, worst, ms, size))
    return choices


def recommend(choices: Sequence[Option], budgets: Budgets) -> tuple[Option | None, str]:
    """(the fastest option that reaches the floor within the budgets, or else the one of highest recall; the reason)."""
    affordable = [
        option
        for option in choices
        if (budgets.ms is None or option.query_ms <= budgets.ms)
        and (budgets.bytes is None or option.bytes_per_document <= budgets.bytes)
    ]
    good = [option for option in affordable if option.recall >= budgets.floor]
    if good:
        least = min(option.query_ms for option in good)
        best = min(
            (o for o in good if o.query_ms <= _NEAR * least),
            key=lambda o: (o.bytes_per_document, o.query_ms, -o.recall),
        )
        return best, f"the fastest that is expected to find {budgets.floor:.0%} of the exact top 10"
    if affordable:
        best = max(affordable, key=lambda o: (o.recall, -o.query_ms))
        return best, f"nothing within the budgets finds {budgets.floor:.0%} of the exact top 10; this finds the most"
    smallest = min((o.bytes_per_document for o in choices), default=0.0)
    fastest = min((o.query_ms for o in choices), default=0.0)
    return None, (
        f"nothing is within the budgets: the smallest takes {smallest:,.0f} bytes per document (--budget-bytes), the "
        f"fastest {fastest:.3g} ms per query (--budget-ms)"
    )


def pareto(choices: Sequence[Option]) -> list[Option]:
    """The options that no other option beats in both recall and time, fastest first."""
    front: list[Option] = []
    for option in sorted(choices, key=lambda o: (o.query_ms, -o.recall)):
        if not front or option.recall > front[-1].recall:
            front.append(option)
    return front


def needed_at(measured: Measured, sample: Sample, n_documents: int) -> dict[float, int | None]:
    """How many candidates contain 90, 95 and 99 % of the exact top 10 in the whole corpus; None: no number does."""
    scale = max(1.0, n_documents / len(sample.documents)) ** measured.exponent
    depths = {target: needed(measured.ranks_10, target) for target in TARGETS}
    return {target: None if depth is None else int(np.ceil(depth * scale)) for target, depth in depths.items()}


def remarks(measured: Sequence[Measured]) -> list[str]:
    """Warnings about FDEs with this encoder, before a collection is built with them."""
    at_100 = {each.name: recall(each.ranks_10, 100) for each in measured}
    size = {each.name: each.costs.bytes_per_document for each in measured}
    sentences = []
    for name in ("fde 2560", "fde 10240"):
        if at_100.get(name, 1.0) < 0.9:
            sentences.append(
                f"{name} with MUVERA's settings holds only {at_100[name]:.1%} of the exact top 10 in 100 candidates: "
                "this encoder's token vectors do not suit it"
            )
        centred = at_100.get(f"{name} centred", at_100.get(name, 0.0)) - at_100.get(name, 0.0)
        if abs(centred) >= _NOTICEABLE:
            sentences.append(f"centring moves {name} by {centred:+.1%} at 100 candidates")
    unfilled = at_100.get("fde 2560 unfilled", 0.0) - at_100.get("fde 2560", 0.0)
    if "fde 2560 unfilled" in at_100 and abs(unfilled) >= _NOTICEABLE:
        sentences.append(f"leaving empty cells empty moves fde 2560 by {unfilled:+.1%} at 100 candidates")
    encodings = [name for name in at_100 if name.startswith("fde ")]
    if "dense" in at_100 and encodings:
        best = max(encodings, key=lambda name: at_100[name])
        if at_100["dense"] >= at_100[best]:
            sentences.append(
                f"the dense vector of the same forward pass ({size['dense']:,.0f} bytes) holds {at_100['dense']:.1%}, "
                f"no encoding holds more ({best}: {at_100[best]:.1%}, {size[best]:,.0f} bytes)"
            )
    return sentences


def settings_of(option: Option, encoder: str) -> dict[str, Any]:
    """The settings tree that builds and searches this option: models, build and the plan `late`."""
    sources = option.measured.sources
    if option.measured.direct:
        pooled = f"{encoder}+{sources[0].pooling}" if sources[0].pooling else encoder
        plan: dict[str, Any] = {"channels": {"multivector": {"depth": 100}}}
        build: dict[str, Any] = {"channels": ["multivector"]}
        if sources[0].parameters:
            build["parameters"] = {"multivector": dict(sources[0].parameters)}
        return {"models": {"encoder": pooled}, "build": build, "plans": {"late": plan}}
    share = option.depth // len(sources)
    build = {"channels": sorted({"multivector", *(source.family for source in sources)})}
    build["parameters"] = {source.family: dict(source.parameters) for source in sources if source.parameters}
    plan = {"channels": {source.family: {"depth": share} for source in sources}}
    if option.measured.holds_tokens:
        build["parameters"]["multivector"] |= {"candidates": share, "margin": 1.0}
        plan["channels"]["multivector"]["depth"] = min(share, _SHOWN)
    if len(sources) > 1 or not option.measured.holds_tokens:
        build["floor"] = _floor(sources, share)
        plan["rescore"] = {"channel": "multivector", "depth": option.depth}
    return {"models": {"encoder": encoder}, "build": build, "plans": {"late": plan}}


def _floor(sources: Sequence[Source], share: int) -> dict[str, Any]:
    """A single channel of a union need not reach the recall floor."""
    return {"recall": 0.0} if len(sources) > 1 else {"depth": share}
