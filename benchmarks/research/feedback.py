"""Interpolation and pseudo-relevance feedback: the table of arXiv 2205.00235 reproduced, and the cost of a request.

    python -m benchmarks.research.feedback [FOLDER ...] [--sparse NAME] [--vectors DIR] [--pairs P ...]
                                           [--choose] [--quick]

FOLDER is a BEIR collection, evaluated on at most 1,100 of its test queries, evenly spaced. The dense query vector is
mixed with those of the first three documents (Rocchio). Rankings are interpolated with BM25 and, with --sparse, with
the learned sparse encoder of that name. The weights are constants in this file, chosen with --choose on the queries of
TUNING alone. AP counts the first 100 hits. p compares with the plan without feedback (paired randomisation test, with
Holm's correction over the modes of a table). Costs are measured on the first folder.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import Row, demo_corpus, emit, excerpt, interleave, parser
from benchmarks.research.judged_collection import JudgedCollection, open_judged
from chamfer.core.evaluation import Evaluation, holm, significance
from chamfer.core.protocols import Encoder
from chamfer.core.types import VectorKind
from chamfer.service.search.plans import Plan

MEASURES = ("nDCG@10", "AP", "R@100")
TUNING = (("fairytaleqa", "dev"), ("scifact", "train"), ("nfcorpus-stopped", "dev"))
MODES = ("before", "after", "both")
PAIRS = ("lexical", "sparse")
MOST = 1100

# The partner's weight in the interpolation without feedback (dense has the rest), and (weight, alpha, beta) by mode.
# They were chosen by the mean nDCG@10 over TUNING; for learned sparse, over its first two sets. The modes none, after
# and both share one weight, so that they differ only by feedback.
WEIGHTS = {"lexical": 0.7, "sparse": 0.6}
MIXTURES: dict[tuple[str, str], tuple[float, float, float]] = {
    ("lexical", "before"): (0.8, 0.4, 0.6),
    ("lexical", "after"): (0.7, 0.4, 0.6),
    ("lexical", "both"): (0.7, 0.7, 0.3),
    ("sparse", "before"): (0.8, 0.4, 0.6),
    ("sparse", "after"): (0.6, 0.7, 0.3),
    ("sparse", "both"): (0.6, 0.7, 0.3),
}
GUARD = {"low": 3.0, "high": 5.0}
WEIGHT_GRID = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
MIXTURE_GRID = ((0.4, 0.6), (0.7, 0.3))
GUARD_GRID = ((2.0, 4.0), (3.0, 5.0), (4.0, 6.0), (4.5, 4.5), (5.0, 6.0))
RM3 = {"method": "rm3"}


def main() -> None:
    """Runs the benchmark."""
    arguments = parser(__doc__)
    arguments.add_argument("folders", type=Path, nargs="*")
    arguments.add_argument("--encoder", default="mini")
    arguments.add_argument("--sparse")
    arguments.add_argument("--vectors", type=Path, help="folder where encodings are cached")
    arguments.add_argument(
        "--pairs", nargs="+", choices=PAIRS, default=PAIRS, help="channels that are interpolated with dense"
    )
    arguments.add_argument(
        "--choose", nargs="*", help="evaluate the weight grids over TUNING, or over the named sets of it, instead"
    )
    options = arguments.parse_args()
    folders = options.folders or [demo_corpus()]
    if options.choose is not None:
        set_names = options.choose or [name for name, _ in TUNING]
        tuning = [(folders[0].parent / name, split, 400) for name, split in TUNING if name in set_names]
        sets = _open(tuning, options)
        rows = [row for pair in options.pairs if all(_has(s, pair) for s in sets) for row in choose(sets, pair)]
    else:
        rows = []
        for folder in folders:
            with tempfile.TemporaryDirectory() as work:
                source = excerpt(folder, Path(work)) if options.quick else folder
                [collection] = _open([(source, "test", MOST)], options)
            for pair in options.pairs:
                if _has(collection, pair):
                    rows += table(collection, pair)
            if (
                folder == folders[0] and "lexical" in options.pairs
            ):  # one collection suffices: the cost hardly depends on it
                rows += cost(collection, options.encoder, 40 if options.quick else 60)
    emit(rows, options.json)


def plan(
    pair: str, weight: float, mode: str | None = None, mixture: tuple[float, float] = (0.4, 0.6), **more: Any
) -> Plan:
    """Dense interpolated with its partner channel, with feedback to `dense` in the given mode.

    The keyword `partner` gives the feedback settings of the partner channel; other keywords are fields of `feedback`.
    """
    fields: dict[str, Any] = {"channels": {pair: {"weight": weight}, "dense": {"weight": round(1 - weight, 3)}}}
    if mode is not None:
        rocchio = {"alpha": mixture[0], "beta": mixture[1]}
        partner = more.pop("partner", None)
        channels = {"dense": rocchio, **({pair: partner} if partner else {})}
        fields["feedback"] = {"interpolate": mode, "channels": channels, "guard": None, **more}
    return Plan.model_validate(fields)


def plans(pair: str) -> dict[str, Plan]:
    """The plans of a table. `guarded` is `both` with the drift guard; `rm3` is `both` with RM3 on the partner too."""
    plans_by_mode = {
        "dense": Plan.model_validate({"channels": {"dense": {}}}),
        pair: Plan.model_validate({"channels": {pair: {}}}),
    }
    plans_by_mode["none"] = plan(pair, WEIGHTS[pair])
    for mode in MODES:
        weight, *mixture = MIXTURES[pair, mode]
        plans_by_mode[mode] = plan(pair, weight, mode, (mixture[0], mixture[1]))
    weight, alpha, beta = MIXTURES[pair, "both"]
    plans_by_mode["guarded"] = plan(pair, weight, "both", (alpha, beta), guard=GUARD)
    plans_by_mode["rm3"] = plan(pair, weight, "both", (alpha, beta), partner=RM3)
    plans_by_mode["rm3 guarded"] = plan(pair, weight, "both", (alpha, beta), partner=RM3, guard=GUARD)
    return plans_by_mode


def table(collection: JudgedCollection, pair: str) -> list[Row]:
    """All plans for one collection and one partner, with p-values against `none`."""
    results = {name: collection.evaluate(searched_plan, MEASURES) for name, searched_plan in plans(pair).items()}
    compared = [name for name in results if name not in ("dense", pair, "none")]
    rows = []
    for name, result in results.items():
        rows += [Row(f"{collection.name} dense+{pair} {name}: {m}", v, m) for m, v in result.means.items()]
    for measure in ("nDCG@10", "AP"):
        against = results["none"].per_query[measure]
        p_values = holm([significance(results[name].per_query[measure], against) for name in compared])
        rows += [
            Row(f"{collection.name} dense+{pair} {name}: p {measure}", p, "p")
            for name, p in zip(compared, p_values, strict=True)
        ]
    return rows


def choose(sets: Sequence[JudgedCollection], pair: str) -> list[Row]:
    """Mean nDCG@10 over the sets for each weight, mode and mixture, then for each guard."""
    tried = {f"none {w}": plan(pair, w) for w in WEIGHT_GRID}
    for mode, weight, mixture in product(MODES, WEIGHT_GRID, MIXTURE_GRID):
        tried[f"{mode} {weight} {mixture}"] = plan(pair, weight, mode, mixture)
    for partner, mixture in product((RM3, {"method": "rm3", "original": 0.7}, {"method": "rocchio"}), MIXTURE_GRID):
        tried[f"both {WEIGHTS[pair]} {mixture} {partner}"] = plan(pair, WEIGHTS[pair], "both", mixture, partner=partner)
    for low, high in GUARD_GRID:
        guard = {"low": low, "high": high}
        tried[f"guard {guard}"] = plan(pair, WEIGHTS[pair], "both", guard=guard)
        tried[f"guard {guard} rm3"] = plan(pair, WEIGHTS[pair], "both", partner=RM3, guard=guard)
    rows = []
    for name, tried_plan in tried.items():
        results = [collection.evaluate(tried_plan, MEASURES) for collection in sets]
        rows.append(Row(f"{pair} {name}: {_each(results)}", _mean(results, "nDCG@10"), "nDCG@10"))
    return rows


def cost(collection: JudgedCollection, encoder: str, n_queries: int) -> list[Row]:
    """CPU time of single requests: encoding the query, searching without feedback, and searching with it.

    The ratio compares encoding plus search with and without feedback. It leaves out HTTP, which costs both the same.
    """
    from chamfer.models.backends.config import DeviceConfig
    from chamfer.models.registry import load_encoder

    model = load_encoder(encoder, DeviceConfig())
    rescore = {"channel": "multivector", "interpolate": 0.6}
    base = plan("lexical", WEIGHTS["lexical"])
    best = Plan.model_validate({**base.model_dump(), "rescore": rescore})
    learning = {
        "balanced + rocchio": (base, {"dense": {}}),
        "balanced + rocchio and rm3": (base, {"dense": {}, "lexical": RM3}),
        "best + rocchio and rm3": (best, {"dense": {}, "lexical": RM3}),
        "best + token expansion": (best, {"multivector": {"method": "expansion"}}),
    }
    subset = replace(collection, queries=collection.queries[:n_queries])
    rows = []
    for name, (without, channels) in learning.items():
        fed = Plan.model_validate({**without.model_dump(), "feedback": {"channels": channels, "guard": None}})
        kinds = [VectorKind.DENSE, VectorKind.TOKENS] if without.rescore else [VectorKind.DENSE]
        contenders: dict[str, Callable[[], object]] = {"encoding": partial(_encode, model, subset, kinds)}
        contenders |= {"without": partial(subset.run, without, 10, 1), "with": partial(subset.run, fed, 10, 1)}
        times = {part: np.array(seconds) for part, seconds in interleave(contenders, 7).items()}
        parts = {part: float(np.median(seconds)) * 1e3 / len(subset.queries) for part, seconds in times.items()}
        ratio = float(np.median((times["encoding"] + times["with"]) / (times["encoding"] + times["without"])))
        title = f"{collection.name} cost, {name}"
        rows += [Row(f"{title}: {part}", value, "ms") for part, value in parts.items()]
        rows.append(Row(f"{title}: a request, times that without feedback", ratio, "x"))
    return rows


def _encode(model: Encoder, collection: JudgedCollection, kinds: Sequence[VectorKind]) -> None:
    for query in collection.queries:
        model.encode_queries([query], kinds)


def _open(sources: Iterable[tuple[Path, str, int]], options: Any) -> list[JudgedCollection]:
    collections = []
    for folder, split, limit in sources:
        begin = time.perf_counter()
        collections.append(open_judged(folder, split, options.encoder, options.sparse, options.vectors, limit))
        print(f"{folder.name} {split} opened in {time.perf_counter() - begin:.0f} s", file=sys.stderr, flush=True)
    return collections


def _has(collection: JudgedCollection, pair: str) -> bool:
    return pair in collection.pipeline.capabilities.channels


def _mean(results: Sequence[Evaluation], measure: str) -> float:
    return float(np.mean([result.means[measure] for result in results]))


def _each(results: Sequence[Evaluation]) -> str:
    return " ".join(f"{r.means['nDCG@10']:.4f}/{r.means['AP']:.4f}/{r.means['R@100']:.4f}" for r in results)


if __name__ == "__main__":
    main()
