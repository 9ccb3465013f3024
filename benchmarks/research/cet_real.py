"""Pooling bias on real judgements: a set judged in full, of which a ranker sees only what BM25 pooled.

    python -m benchmarks.research.cet_real [FOLDER ...] [--encoded DIR] [--seeds 5] [--quick] [--json]

FOLDER is a BEIR collection whose test queries are judged (nearly) in full, such as cranfield. Labels are kept for the
first 10 of BM25 alone. A linear ranker over five features (BM25, share of the query's words, length; cosine, MaxSim)
learns from them with 8 negatives a positive out of the dense top 50, the strong source, or of BM25's, the weak one,
and ranks the dense top 50 of the queries of other folds; nDCG@10 counts all judgements. Five folds, drawn anew for
every seed; a query's value is its mean over seeds, p is the paired randomisation test against strong negatives without
weights, adjusted by Holm over the arms.
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
from benchmarks.harness import Row, demo_corpus, emit, parser, titled
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
class Judged:
    """A World over all documents of a set (p_r and p_s, which nobody knows, are zeros), and its names."""

    world: World
    query_ids: Sequence[str]
    doc_ids: Sequence[str]
    qrels: Sequence[Qrel]

    def values(self, scores: Tensor) -> dict[str, float]:
        """nDCG@10 by query of the dense top 50, ranked by scores f32 [Q, N]."""
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
    arguments.add_argument("--encoded", type=Path, help="folder of kept encodings")
    arguments.add_argument("--seeds", type=int, default=5)
    options = arguments.parse_args()
    seeds = 2 if options.quick else options.seeds
    setting = Setting(correlation=0, slope=0, shift=0, steps=100 if options.quick else 500)
    rows: list[Row] = []
    for folder in options.folders or [demo_corpus()]:
        with tempfile.TemporaryDirectory() as work:
            judged = read(load(folder, options.encoded or Path(work), 60 if options.quick else 10_000))
        rows += titled(folder.resolve().name, [*compared(judged, setting, seeds), *described(judged, setting)])
    emit(rows, options.json)


def compared(judged: Judged, setting: Setting, seeds: int) -> list[Row]:
    """Three rows an arm: mean nDCG@10, standard error over seeds, adjusted p against the baseline."""
    found: dict[str, list[dict[str, float]]] = {
        "dense alone": [judged.values(judged.world.strong)],
        "BM25 alone": [judged.values(judged.world.weak)],
    }
    for seed in range(seeds):
        for name, scores in cross_validated(judged.world, setting, seed).items():
            found.setdefault(name, []).append(judged.values(scores))
    means = {name: {q: float(np.mean([run[q] for run in runs])) for q in runs[0]} for name, runs in found.items()}
    others = [name for name in means if name != BASELINE]
    p = dict(zip(others, holm([significance(means[name], means[BASELINE]) for name in others]), strict=True))
    rows = []
    for name, runs in found.items():
        by_seed = [float(np.mean(list(run.values()))) for run in runs]
        spread = float(np.std(by_seed, ddof=1) / len(by_seed) ** 0.5) if len(by_seed) > 1 else 0.0
        rows.append(Row(f"{name}: {PER_QUERY}", float(np.mean(by_seed)), MEASURE))
        rows.append(Row(f"{name}: {SPREAD}", spread, MEASURE))
        rows.append(Row(f"{name}: {ADJUSTED}", p.get(name, 1.0), "p", BASELINE))
    return rows


def cross_validated(world: World, setting: Setting, seed: int) -> dict[str, Tensor]:
    """Scores f32 [Q, N] by arm; each query is scored by rankers that did not learn from it."""
    folds = torch.randperm(len(world.strong), generator=torch.Generator().manual_seed(seed)) % FOLDS
    out: dict[str, Tensor] = {}
    for fold in range(FOLDS):
        learn, other = (folds != fold).nonzero()[:, 0], (folds == fold).nonzero()[:, 0]
        rng = torch.Generator().manual_seed(seed * FOLDS + fold)
        for name, ranker in arms(taken(world, learn), setting, rng).items():
            out.setdefault(name, torch.zeros(world.weak.shape))[other] = world.features[other] @ ranker
    return out


def arms(made: World, setting: Setting, rng: torch.Generator) -> dict[str, Tensor]:
    """Linear rankers f32 [5] by arm."""
    weak, strong = draw_pairs(made, "weak", rng), draw_pairs(made, "strong", rng)
    found = {"weak negatives": fit(setting, made, weak), BASELINE: fit(setting, made, strong)}
    for temperature in (10.0, 2.0):
        for name, seen in (("released", ALL), ("pool features", LEXICAL)):
            found[f"CET {name}, T={temperature:.0f}"] = fit_cet(setting, made, strong, temperature, seen, rng)[0]
    p_s, p_r = fit_selection(made, LEXICAL), fit_relevance(made)
    weights = selection_weights(p_s[strong.query, strong.negative], MOST)
    found["logged: 1/(1-p_s)"] = fit(setting, made, strong, weights)
    up, _ = exact_weights(p_s[strong.query, strong.positive], p_r[strong.query, strong.positive])
    _, down = exact_weights(p_s[strong.query, strong.negative], p_r[strong.query, strong.negative])
    found["logged: exact weights"] = fit(setting, made, strong, up * down / (up * down).mean())
    shuffled = weights[torch.randperm(len(weights), generator=rng)]
    found["control: shuffled weights"] = fit(setting, made, strong, shuffled)
    found["logged: judged negatives"] = fit(setting, made, draw_pairs(made, "strong", rng, allowed=made.selected))
    true = ~made.relevant[strong.query, strong.negative]
    pairs = Pairs(strong.query[true], strong.positive[true], strong.negative[true])
    found["oracle: no false negatives"] = fit(setting, made, pairs)
    whole = replace(made, selected=dense_top(made))  # positives from where negatives are: else cosine tells them apart
    found["oracle: dense top 50 judged"] = fit(setting, whole, draw_pairs(whole, "strong", rng))
    return found


def fit_relevance(made: World) -> Tensor:
    """p_r f32 [Q, N] by logistic regression on all features among the judged: there a label tells relevance."""
    inputs, labels = made.features[made.selected], made.relevant[made.selected].float()
    weights, shift = torch.zeros(inputs.shape[1], requires_grad=True), torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights, shift], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(inputs @ weights + shift, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return torch.sigmoid(made.features @ weights + shift).detach()


def described(judged: Judged, setting: Setting) -> list[Row]:
    """What the pool hides, the shares of false negatives, and how far rankers trust the channel that did not pool."""
    made, rng = judged.world, torch.Generator().manual_seed(0)
    labels = made.relevant & made.selected
    hidden = made.relevant & dense_top(made) & ~labels
    rows = [
        Row("relevant a query", float(made.relevant.sum(dim=1).float().mean()), "documents"),
        Row("labels a query", float(labels.sum(dim=1).float().mean()), "documents"),
        Row(
            "relevant in the dense top 50 without a label, a query",
            float(hidden.sum(dim=1).float().mean()),
            "documents",
        ),
    ]
    for source in ("weak", "strong"):
        pairs = draw_pairs(made, source, rng)
        share = float(made.relevant[pairs.query, pairs.negative].float().mean())
        rows.append(Row(f"false among {source} negatives", share, "share"))
    rankers = arms(made, setting, rng)
    return rows + [
        Row(f"weight of cosine by that of BM25, {name}", float(w[3] / w[0]), "times") for name, w in rankers.items()
    ]


def dense_top(made: World) -> Tensor:
    """What is ranked, bool [Q, N]."""
    return torch.zeros_like(made.relevant).scatter_(1, made.strong.topk(DEPTH, dim=1).indices, True)


def taken(world: World, rows: Tensor) -> World:
    """The world of some queries."""
    return World(*(getattr(world, name)[rows] for name in World.__dataclass_fields__))


def read(own: EncodedSet) -> Judged:
    """The set with five features of every pair, each standardised over a query's documents (length over all)."""
    dense, tokens, asked = own.encoding.dense, own.encoding.tokens, own.queries.tokens
    if dense is None or tokens is None or own.queries.dense is None or asked is None:
        raise TypeError("the encodings hold no dense or no token vectors")
    cosine = torch.from_numpy(own.queries.dense.values @ dense.values.T).float()
    rows = np.arange(len(own.documents), dtype=np.int64)
    late = [
        maxsim_rows(asked.values[a:b], tokens.values, tokens.offsets, rows) / (b - a)
        for a, b in zip(asked.offsets[:-1].tolist(), asked.offsets[1:].tolist(), strict=True)
    ]
    lexical = bm25(own.documents, own.query_texts)
    sizes = torch.from_numpy(np.log(np.maximum(np.diff(tokens.offsets), 1))).float().expand(len(lexical), -1)
    words = [set(re.findall(r"\w+", document.content.lower())) for document in own.documents]
    shares = torch.tensor([[share(text, owned) for owned in words] for text in own.query_texts])
    stacked = [lexical, shares, sizes, cosine, torch.from_numpy(np.array(late))]
    features = torch.stack([standardised(feature) for feature in stacked], dim=2)
    relevant = judgements(own)
    selected = torch.zeros_like(relevant).scatter_(1, lexical.topk(POOL, dim=1).indices, True)
    unknown = torch.zeros_like(cosine)
    world = World(features, unknown, unknown, relevant, selected, lexical, cosine)
    return Judged(world, own.query_ids, [document.doc_id for document in own.documents], own.qrels)


def standardised(feature: Tensor) -> Tensor:
    """f32 [Q, N] less the mean of each row, by its standard deviation; a row of one value becomes zeros."""
    centred = feature - feature.mean(dim=1, keepdim=True)
    return centred / centred.std(dim=1, keepdim=True).clamp_min(1e-6)


def share(query: str, words: set[str]) -> float:
    """Of the query's words, how many are among these."""
    asked = set(re.findall(r"\w+", query.lower()))
    return len(asked & words) / max(len(asked), 1)


def judgements(own: EncodedSet) -> Tensor:
    """Relevant bool [Q, N]."""
    row_of = {document.doc_id: row for row, document in enumerate(own.documents)}
    place_of = {query_id: place for place, query_id in enumerate(own.query_ids)}
    relevant = torch.zeros((len(place_of), len(row_of)), dtype=torch.bool)
    for qrel in own.qrels:
        if qrel.relevance > 0 and qrel.doc_id in row_of:
            relevant[place_of[qrel.query_id], row_of[qrel.doc_id]] = True
    return relevant


def plot(axes: Any, rows: list[Row]) -> bool:
    """nDCG@10 by arm with standard errors over seeds; the line is that of strong negatives."""
    cells = _cells(rows)
    corpora = list(dict.fromkeys(corpus for corpus, _ in cells))
    names = list(dict.fromkeys(arm for _, arm in cells))[::-1]
    height = 0.8 / max(len(corpora), 1)
    for number, corpus in enumerate(corpora):
        own = [cells[corpus, arm] for arm in names]
        places = [place + number * height for place in range(len(names))]
        values, errors = [cell[PER_QUERY] for cell in own], [cell[SPREAD] for cell in own]
        [bar, *_] = axes.barh(places, values, height, xerr=errors, label=corpus)
        axes.axvline(cells[corpus, BASELINE][PER_QUERY], color=bar.get_facecolor(), linewidth=0.8, linestyle="--")
    axes.figure.set_size_inches(9, 5)
    axes.set_yticks([place + 0.4 - height / 2 for place in range(len(names))], names, fontsize=8)
    axes.set_xlabel("nDCG@10 by all judgements")
    axes.set_xlim(left=min((cell[PER_QUERY] for cell in cells.values()), default=0) - 0.02)
    axes.legend(fontsize=8)
    return bool(cells)


def table(rows: list[Row]) -> str:
    """One line an arm: mean, standard error over seeds, adjusted p; then what the pool hides."""
    lines = ["| corpus | arm | nDCG@10 | p against strong negatives |", "| --- | --- | --- | --- |"]
    for (corpus, arm), cell in _cells(rows).items():
        p = "" if arm == BASELINE else f"{cell[ADJUSTED]:.4f}"
        lines.append(f"| {corpus} | {arm} | {cell[PER_QUERY]:.4f} ± {cell[SPREAD]:.4f} | {p} |")
    notes = [f"- {row.what}: {row.value:.4g} {row.unit}" for row in rows if row.unit in ("documents", "share", "times")]
    return "\n".join([*lines, "", *notes, ""])


def _cells(rows: Sequence[Row]) -> Mapping[tuple[str, str], dict[str, float]]:
    """(corpus, arm) -> its three figures."""
    out: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        if row.unit in (MEASURE, "p"):
            corpus, _, rest = row.what.partition(": ")
            arm, _, figure = rest.rpartition(": ")
            out.setdefault((corpus, arm), {})[figure] = row.value
    return out


if __name__ == "__main__":
    main()
