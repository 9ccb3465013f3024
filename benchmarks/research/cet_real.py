"""Pooling bias on real judgements: rankers learn from the part of a fully judged collection that BM25 pooled.

    python -m benchmarks.research.cet_real [FOLDER ...] [--encoded DIR] [--seeds 5] [--quick] [--json]

FOLDER is a BEIR collection whose test queries are judged (nearly) in full, such as cranfield. Only the labels of BM25's
top 10 are given to the rankers. A linear ranker over five features (BM25, share of the query's words, length; cosine,
MaxSim) learns from them with 8 negatives per positive, taken from the dense top 50 (the strong source) or from BM25's
top 50 (the weak source). It ranks the dense top 50 of the queries of other folds, and nDCG@10 counts all judgements.
There are five folds, drawn anew for every seed. The value of a query is its mean over seeds; p is from the paired
randomisation test against unweighted strong negatives, with Holm's correction over the arms.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.bm25 import bm25
from benchmarks.encoded import EncodedSet, load
from benchmarks.harness import Row, demo_corpus, emit, excerpt, parser, titled
from benchmarks.research.cet_simulation import DEPTH, Pairs, Setting, World, draw_pairs, fit, fit_cet, fit_selection
from chamfer.core.evaluation import Qrel, ScoredDoc, evaluate, holm, significance, strictly_falling
from chamfer.indexing.kernels.maxsim import maxsim_rows
from chamfer.models.training.losses.selection import exact_weights, selection_weights

POOL, FOLDS, MOST, MEASURE = 10, 5, 20.0, "nDCG@10"
LEXICAL = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0])
ALL = torch.ones(len(LEXICAL))
BASELINE = "strong negatives"
PER_QUERY, SPREAD, ADJUSTED = "nDCG@10", "standard error over seeds", "p"


@dataclass(frozen=True)
class JudgedWorld:
    """A World over all documents of a collection, with ids and judgements; the unknown p_r and p_s are zeros."""

    world: World
    query_ids: Sequence[str]
    doc_ids: Sequence[str]
    qrels: Sequence[Qrel]

    def values(self, scores: Tensor) -> dict[str, float]:
        """nDCG@10 by query of the dense top 50, reranked by scores f32 [Q, N]."""
        run = []
        for number, query_id in enumerate(self.query_ids):
            rows = self.world.strong[number].topk(min(DEPTH, scores.shape[1])).indices
            rows = rows[torch.argsort(-scores[number, rows], stable=True)]
            falling = strictly_falling(scores[number, rows].numpy())
            run += [ScoredDoc(query_id, self.doc_ids[int(r)], float(s)) for r, s in zip(rows, falling, strict=True)]
        return dict(evaluate(run, self.qrels, [MEASURE]).per_query[MEASURE])


def main() -> None:
    """Runs the benchmark."""
    arguments = parser(__doc__)
    arguments.add_argument("folders", type=Path, nargs="*")
    arguments.add_argument("--encoded", type=Path, help="folder where encodings are cached")
    arguments.add_argument("--seeds", type=int, default=5)
    options = arguments.parse_args()
    seeds = 2 if options.quick else options.seeds
    setting = Setting(correlation=0, slope=0, shift=0, steps=100 if options.quick else 500)
    rows: list[Row] = []
    for folder in options.folders or [demo_corpus()]:
        with tempfile.TemporaryDirectory() as work:
            source = excerpt(folder, Path(work)) if options.quick else folder
            judged_world = read(load(source, options.encoded or Path(work), 60 if options.quick else 10_000))
        rows += titled(
            folder.resolve().name, [*compared(judged_world, setting, seeds), *described(judged_world, setting)]
        )
    emit(rows, options.json)


def compared(judged_world: JudgedWorld, setting: Setting, seeds: int) -> list[Row]:
    """Three rows per arm: mean nDCG@10, standard error over seeds, adjusted p against the baseline."""
    runs_by_arm: dict[str, list[dict[str, float]]] = {
        "dense alone": [judged_world.values(judged_world.world.strong)],
        "BM25 alone": [judged_world.values(judged_world.world.weak)],
    }
    for seed in range(seeds):
        for name, scores in cross_validated(judged_world.world, setting, seed).items():
            runs_by_arm.setdefault(name, []).append(judged_world.values(scores))
    means = {name: {q: float(np.mean([run[q] for run in runs])) for q in runs[0]} for name, runs in runs_by_arm.items()}
    others = [name for name in means if name != BASELINE]
    p = dict(zip(others, holm([significance(means[name], means[BASELINE]) for name in others]), strict=True))
    rows = []
    for name, runs in runs_by_arm.items():
        by_seed = [float(np.mean(list(run.values()))) for run in runs]
        spread = float(np.std(by_seed, ddof=1) / len(by_seed) ** 0.5) if len(by_seed) > 1 else 0.0
        rows.append(Row(f"{name}: {PER_QUERY}", float(np.mean(by_seed)), MEASURE))
        rows.append(Row(f"{name}: {SPREAD}", spread, MEASURE))
        rows.append(Row(f"{name}: {ADJUSTED}", p.get(name, 1.0), "p", BASELINE))
    return rows


def cross_validated(world: World, setting: Setting, seed: int) -> dict[str, Tensor]:
    """Scores f32 [Q, N] by arm; each query is scored by rankers that were not trained on it."""
    folds = torch.randperm(len(world.strong), generator=torch.Generator().manual_seed(seed)) % FOLDS
    scores: dict[str, Tensor] = {}
    for fold in range(FOLDS):
        learn, other = (folds != fold).nonzero()[:, 0], (folds == fold).nonzero()[:, 0]
        rng = torch.Generator().manual_seed(seed * FOLDS + fold)
        for name, ranker in arms(subset(world, learn), setting, rng).items():
            scores.setdefault(name, torch.zeros(world.weak.shape))[other] = world.features[other] @ ranker
    return scores


def arms(world: World, setting: Setting, rng: torch.Generator) -> dict[str, Tensor]:
    """Linear rankers f32 [5] by arm."""
    weak, strong = draw_pairs(world, "weak", rng), draw_pairs(world, "strong", rng)
    rankers = {"weak negatives": fit(setting, world, weak), BASELINE: fit(setting, world, strong)}
    for temperature in (10.0, 2.0):
        for name, seen in (("released", ALL), ("pool features", LEXICAL)):
            rankers[f"CET {name}, T={temperature:.0f}"] = fit_cet(setting, world, strong, temperature, seen, rng)[0]
    p_s, p_r = fit_selection(world, LEXICAL), fit_relevance(world)
    weights = selection_weights(p_s[strong.query, strong.negative], MOST)
    rankers["logged: 1/(1-p_s)"] = fit(setting, world, strong, weights)
    up, _ = exact_weights(p_s[strong.query, strong.positive], p_r[strong.query, strong.positive])
    _, down = exact_weights(p_s[strong.query, strong.negative], p_r[strong.query, strong.negative])
    rankers["logged: exact weights"] = fit(setting, world, strong, up * down / (up * down).mean())
    shuffled = weights[torch.randperm(len(weights), generator=rng)]
    rankers["control: shuffled weights"] = fit(setting, world, strong, shuffled)
    rankers["logged: judged negatives"] = fit(setting, world, draw_pairs(world, "strong", rng, allowed=world.selected))
    true = ~world.relevant[strong.query, strong.negative]
    pairs = Pairs(strong.query[true], strong.positive[true], strong.negative[true])
    rankers["oracle: no false negatives"] = fit(setting, world, pairs)
    dense_judged = replace(
        world, selected=dense_top(world)
    )  # else cosine separates positives (BM25) from negatives (dense)
    rankers["oracle: dense top 50 judged"] = fit(setting, dense_judged, draw_pairs(dense_judged, "strong", rng))
    return rankers


def fit_relevance(world: World) -> Tensor:
    """p_r f32 [Q, N] by logistic regression on all features of the judged pairs, where a label means relevance."""
    inputs, labels = world.features[world.selected], world.relevant[world.selected].float()
    weights, shift = torch.zeros(inputs.shape[1], requires_grad=True), torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights, shift], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(inputs @ weights + shift, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return torch.sigmoid(world.features @ weights + shift).detach()


def described(judged_world: JudgedWorld, setting: Setting) -> list[Row]:
    """What the pool misses, the shares of false negatives, and the weight of cosine relative to BM25 in each ranker."""
    world, rng = judged_world.world, torch.Generator().manual_seed(0)
    labels = world.relevant & world.selected
    hidden = world.relevant & dense_top(world) & ~labels
    rows = [
        Row("relevant a query", float(world.relevant.sum(dim=1).float().mean()), "documents"),
        Row("labels a query", float(labels.sum(dim=1).float().mean()), "documents"),
        Row(
            "relevant in the dense top 50 without a label, a query",
            float(hidden.sum(dim=1).float().mean()),
            "documents",
        ),
    ]
    for source in ("weak", "strong"):
        pairs = draw_pairs(world, source, rng)
        share = float(world.relevant[pairs.query, pairs.negative].float().mean())
        rows.append(Row(f"false among {source} negatives", share, "share"))
    rankers = arms(world, setting, rng)
    return rows + [
        Row(f"weight of cosine by that of BM25, {name}", float(w[3] / w[0]), "times") for name, w in rankers.items()
    ]


def dense_top(world: World) -> Tensor:
    """The documents that are ranked, bool [Q, N]: the dense top 50."""
    return torch.zeros_like(world.relevant).scatter_(1, world.strong.topk(DEPTH, dim=1).indices, True)


def subset(world: World, rows: Tensor) -> World:
    """The world restricted to the given queries."""
    return World(*(getattr(world, name)[rows] for name in World.__dataclass_fields__))


def read(encoded_set: EncodedSet) -> JudgedWorld:
    """The collection with five features of every pair, each standardised over the documents of a query."""
    dense, tokens, query_tokens = encoded_set.encoding.dense, encoded_set.encoding.tokens, encoded_set.queries.tokens
    if dense is None or tokens is None or encoded_set.queries.dense is None or query_tokens is None:
        raise TypeError("the encoding lacks dense or token vectors; expected both")
    cosine = torch.from_numpy(encoded_set.queries.dense.values @ dense.values.T).float()
    rows = np.arange(len(encoded_set.documents), dtype=np.int64)
    late = [
        maxsim_rows(query_tokens.values[a:b], tokens.values, tokens.offsets, rows) / (b - a)
        for a, b in zip(query_tokens.offsets[:-1].tolist(), query_tokens.offsets[1:].tolist(), strict=True)
    ]
    lexical = bm25(encoded_set.documents, encoded_set.query_texts)
    sizes = torch.from_numpy(np.log(np.maximum(np.diff(tokens.offsets), 1))).float().expand(len(lexical), -1)
    words = [set(re.findall(r"\w+", document.content.lower())) for document in encoded_set.documents]
    shares = torch.tensor(
        [[share(text, document_words) for document_words in words] for text in encoded_set.query_texts]
    )
    stacked = [lexical, shares, sizes, cosine, torch.from_numpy(np.array(late))]
    features = torch.stack([standardised(feature) for feature in stacked], dim=2)
    relevant = judgements(encoded_set)
    selected = torch.zeros_like(relevant).scatter_(1, lexical.topk(POOL, dim=1).indices, True)
    unknown = torch.zeros_like(cosine)
    world = World(features, unknown, unknown, relevant, selected, lexical, cosine)
    return JudgedWorld(
        world, encoded_set.query_ids, [document.doc_id for document in encoded_set.documents], encoded_set.qrels
    )


def standardised(feature: Tensor) -> Tensor:
    """The feature f32 [Q, N] with mean 0 and standard deviation 1 in each row; a constant row becomes zeros."""
    centred = feature - feature.mean(dim=1, keepdim=True)
    return centred / centred.std(dim=1, keepdim=True).clamp_min(1e-6)


def share(query: str, words: set[str]) -> float:
    """The share of the distinct words of the query that are in `words`."""
    query_words = set(re.findall(r"\w+", query.lower()))
    return len(query_words & words) / max(len(query_words), 1)


def judgements(encoded_set: EncodedSet) -> Tensor:
    """Relevance bool [Q, N] by the judgements."""
    row_of = {document.doc_id: row for row, document in enumerate(encoded_set.documents)}
    index_of_query = {query_id: index for index, query_id in enumerate(encoded_set.query_ids)}
    relevant = torch.zeros((len(index_of_query), len(row_of)), dtype=torch.bool)
    for qrel in encoded_set.qrels:
        if qrel.relevance > 0 and qrel.doc_id in row_of:
            relevant[index_of_query[qrel.query_id], row_of[qrel.doc_id]] = True
    return relevant


def plot(axes: Any, rows: list[Row]) -> bool:
    """nDCG@10 by arm with standard errors over seeds; the dashed line marks strong negatives."""
    cells = _cells(rows)
    corpora = list(dict.fromkeys(corpus for corpus, _ in cells))
    names = list(dict.fromkeys(arm for _, arm in cells))[::-1]
    height = 0.8 / max(len(corpora), 1)
    for number, corpus in enumerate(corpora):
        arm_cells = [cells[corpus, arm] for arm in names]
        positions = [index + number * height for index in range(len(names))]
        values, errors = [cell[PER_QUERY] for cell in arm_cells], [cell[SPREAD] for cell in arm_cells]
        [bar, *_] = axes.barh(positions, values, height, xerr=errors, label=corpus)
        axes.axvline(cells[corpus, BASELINE][PER_QUERY], color=bar.get_facecolor(), linewidth=0.8, linestyle="--")
    axes.figure.set_size_inches(9, 5)
    axes.set_yticks([index + 0.4 - height / 2 for index in range(len(names))], names, fontsize=8)
    axes.set_xlabel("nDCG@10, all judgements")
    axes.set_xlim(left=min((cell[PER_QUERY] for cell in cells.values()), default=0) - 0.02)
    axes.legend(fontsize=8)
    return bool(cells)


def table(rows: list[Row]) -> str:
    """One line per arm: mean, standard error over seeds, adjusted p; then what the pool misses."""
    lines = ["| corpus | arm | nDCG@10 | p against strong negatives |", "| --- | --- | --- | --- |"]
    for (corpus, arm), cell in _cells(rows).items():
        p = "" if arm == BASELINE else f"{cell[ADJUSTED]:.4f}"
        lines.append(f"| {corpus} | {arm} | {cell[PER_QUERY]:.4f} ± {cell[SPREAD]:.4f} | {p} |")
    notes = [f"- {row.what}: {row.value:.4g} {row.unit}" for row in rows if row.unit in ("documents", "share", "times")]
    return "\n".join([*lines, "", *notes, ""])


def _cells(rows: Sequence[Row]) -> Mapping[tuple[str, str], dict[str, float]]:
    """(corpus, arm) -> figure -> value."""
    cells: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        if row.unit in (MEASURE, "p"):
            corpus, _, rest = row.what.partition(": ")
            arm, _, figure = rest.rpartition(": ")
            cells.setdefault((corpus, arm), {})[figure] = row.value
    return cells


if __name__ == "__main__":
    main()
