"""Pooling bias in a simulation with known relevance: stronger negatives give a worse ranker; effects of corrections.

    python -m benchmarks.research.cet_simulation [--seeds 5] [--quick]

Each query has 200 documents with 8 features, 4 semantic and 4 lexical. Relevance depends on both, mostly on the
semantic ones; selection for judgement depends on the lexical score alone, and a document is labelled if it is relevant
and selected. Linear rankers learn from the labels with 8 negatives per positive from the top 50 of a retriever, then
rank the strong retriever's top 50 of other queries; nDCG@10 counts the true relevance. In setting A selection is sharp
and the features are correlated; in setting B it is soft and they are not. The losses and weights are those of the
training jobs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness import Row, emit, parser
from chamfer.models.training.jobs.selection_bias import cosine
from chamfer.models.training.losses import selection

DEPTH, NEGATIVES = 50, 8
MEASURE, ERROR, NOTE = "nDCG@10", ", standard error", "of the training set"
SEMANTIC = torch.tensor([1.0, 1.0, 1.0, 1.0, 0, 0, 0, 0])
LEXICAL = SEMANTIC.flip(0)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """`correlation` of semantic and lexical features, pairwise; `slope` and `shift` of the logit of selection."""

    correlation: float
    slope: float
    shift: float
    train: int = 400
    test: int = 300
    documents: int = 200
    steps: int = 500


A = Setting(correlation=0.3, slope=3.0, shift=-9.5)
B = Setting(correlation=0.0, slope=1.0, shift=-3.6)


@dataclass(frozen=True)
class World:
    """features f32 [Q, N, 8]; p_r, p_s f32 [Q, N]; relevant, selected bool [Q, N]; scores weak, strong f32 [Q, N]."""

    features: Tensor
    p_r: Tensor
    p_s: Tensor
    relevant: Tensor
    selected: Tensor
    weak: Tensor
    strong: Tensor


@dataclass(frozen=True)
class Pairs:
    """Indices i64 [P] of the queries, positives and negatives of P pairs."""

    query: Tensor
    positive: Tensor
    negative: Tensor


def draw_world(setting: Setting, queries: int, rng: torch.Generator) -> World:
    """Draws queries with their documents, relevance and selection for judgement."""
    lexical = torch.randn((queries, setting.documents, 4), generator=rng)
    independent = torch.randn((queries, setting.documents, 4), generator=rng)
    semantic = setting.correlation * lexical + (1 - setting.correlation**2) ** 0.5 * independent
    features = torch.cat([semantic, lexical], dim=2)
    by_meaning, by_words = features @ SEMANTIC, features @ LEXICAL
    p_r = torch.sigmoid(1.6 * (by_meaning + 0.3 * by_words) - 5.5)
    p_s = torch.sigmoid(setting.slope * by_words / 2 + setting.shift / 2)
    relevant = torch.rand(p_r.shape, generator=rng) < p_r
    selected = torch.rand(p_s.shape, generator=rng) < p_s
    strong = by_meaning + 0.15 * by_words + 0.5 * torch.randn(p_r.shape, generator=rng)
    weak = by_words + 0.5 * torch.randn(p_r.shape, generator=rng)
    return World(features, p_r, p_s, relevant, selected, weak, strong)


def draw_pairs(world: World, source: str, rng: torch.Generator, *, allowed: Tensor | None = None) -> Pairs:
    """8 negatives for every labelled document, from the source's top 50, or from `allowed` bool [Q, N] if given."""
    scores = {"weak": world.weak, "strong": world.strong, "random": torch.rand(world.weak.shape, generator=rng)}[source]
    labelled = world.relevant & world.selected
    top = torch.zeros_like(labelled).scatter_(1, scores.topk(DEPTH, dim=1).indices, True)
    open_to = top & ~labelled if allowed is None else allowed & ~labelled
    query, positive = labelled.nonzero(as_tuple=True)
    usable = open_to[query].any(dim=1)
    query, positive = query[usable], positive[usable]
    negative = torch.multinomial(open_to[query].float(), NEGATIVES, replacement=True, generator=rng)
    repeated = [x.repeat_interleave(NEGATIVES) for x in (query, positive)]
    return Pairs(repeated[0], repeated[1], negative.flatten())


def fit(setting: Setting, world: World, pairs: Pairs, weights: Tensor | None = None) -> Tensor:
    """A linear ranker f32 [8] fitted to pairs, optionally with weights f32 [P]."""
    ranker = torch.zeros(world.features.shape[2], requires_grad=True)
    optimizer = torch.optim.Adam([ranker], lr=0.05)
    features = _differences(world, pairs)
    for _ in range(setting.steps):
        optimizer.zero_grad()
        losses = F.softplus(-features @ ranker)
        (losses if weights is None else losses * weights).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return ranker.detach()


def fit_cet(
    setting: Setting, world: World, pairs: Pairs, temperature: float, seen: Tensor, rng: torch.Generator
) -> tuple[Tensor, float]:
    """(ranker R, cosine of R and selector S), trained together. S sees the features marked in `seen` f32 [F]."""
    models = [(0.01 * torch.randn(len(seen), generator=rng)).requires_grad_() for _ in range(2)]
    optimizer = torch.optim.Adam(models, lr=0.05)
    features = _differences(world, pairs)
    negatives = world.features[pairs.query, pairs.negative]
    for _ in range(setting.steps):
        ranker, selector = models[0], models[1] * seen
        of_ranker, of_selector = (
            w / w.mean()
            for w in (
                selection.released_weights(negatives @ selector, temperature),
                selection.released_weights(negatives @ ranker, temperature),
            )
        )
        optimizer.zero_grad()
        loss = (of_ranker * F.softplus(-features @ ranker)).mean()
        (loss + (of_selector * F.softplus(-features @ selector)).mean()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    ranker, selector = models[0].detach(), models[1].detach() * seen
    return ranker, cosine(world.features @ ranker, world.features @ selector)


def fit_selection(world: World, seen: Tensor) -> Tensor:
    """p_s f32 [Q, N] by logistic regression of the logged selection on the features marked in `seen` f32 [F]."""
    weights, shift = torch.zeros(len(seen), requires_grad=True), torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights, shift], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = world.features @ (weights * seen) + shift
        loss = F.binary_cross_entropy_with_logits(logits, world.selected.float())
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return torch.sigmoid(world.features @ (weights * seen) + shift).detach()


def arms(setting: Setting, world: World, rng: torch.Generator) -> tuple[dict[str, Tensor], dict[str, float]]:
    """(linear rankers by arm, notes by name: shares of false negatives, cosines of R and S)."""
    rankers: dict[str, Tensor] = {}
    notes: dict[str, float] = {}
    for source in ("weak", "random", "strong"):
        pairs = draw_pairs(world, source, rng)
        notes[f"false negatives, {source}"] = float(world.relevant[pairs.query, pairs.negative].float().mean())
        rankers[f"{source} negatives"] = fit(setting, world, pairs)
    query, negative = pairs.query, pairs.negative  # the pairs of the strong source
    for temperature in (10.0, 2.0, 1.0):
        for name, seen in (("released", torch.ones(8)), ("pool features", LEXICAL)):
            arm = f"CET {name}, T={temperature:.0f}"
            rankers[arm], notes[f"cosine, {arm}"] = fit_cet(setting, world, pairs, temperature, seen, rng)
    true = ~world.relevant[query, negative]
    rankers["oracle: no false negatives"] = fit(
        setting, world, Pairs(query[true], pairs.positive[true], negative[true])
    )
    inverse = selection.selection_weights(world.p_s[query, negative], 20.0)
    rankers["oracle: 1/(1-p_s), at most 20"] = fit(setting, world, pairs, inverse)
    up, _ = selection.exact_weights(world.p_s[query, pairs.positive], world.p_r[query, pairs.positive])
    _, down = selection.exact_weights(world.p_s[query, negative], world.p_r[query, negative])
    rankers["oracle: exact weights"] = fit(setting, world, pairs, up * down / (up * down).mean())
    fitted = selection.selection_weights(fit_selection(world, LEXICAL)[query, negative], 20.0)
    rankers["logged: 1/(1-p_s), at most 20"] = fit(setting, world, pairs, fitted)
    rankers["control: constant weight"] = fit(setting, world, pairs, torch.full_like(fitted, float(fitted.mean())))
    shuffled = fitted[torch.randperm(len(fitted), generator=rng)]
    rankers["control: shuffled weights"] = fit(setting, world, pairs, shuffled)
    rankers["logged: judged negatives"] = fit(setting, world, draw_pairs(world, "strong", rng, allowed=world.selected))
    return rankers, notes


def ndcg(scores: Tensor, world: World) -> float:
    """Mean nDCG@10 by true relevance of the strong retriever's top 50, reranked; the ideal ranks all documents."""
    top = world.strong.topk(DEPTH, dim=1).indices
    order = top.gather(1, scores.gather(1, top).topk(10, dim=1).indices)
    discounts = 1 / torch.log2(torch.arange(10) + 2.0)
    gained = (world.relevant.gather(1, order).float() * discounts).sum(dim=1)
    ideal = discounts.cumsum(0)[world.relevant.sum(dim=1).clamp(1, 10) - 1]
    return float((gained / ideal)[world.relevant.any(dim=1)].mean())


def one_seed(setting: Setting, seed: int) -> tuple[dict[str, float], dict[str, float]]:
    """(nDCG@10 by arm, notes by name)."""
    rng = torch.Generator().manual_seed(seed)
    train, test = draw_world(setting, setting.train, rng), draw_world(setting, setting.test, rng)
    rankers, notes = arms(setting, train, rng)
    notes["relevant a query"] = float(train.relevant.sum() / setting.train)
    notes["labels a query"] = float((train.relevant & train.selected).sum() / setting.train)
    scores = {
        "true relevance": ndcg(test.p_r, test),
        "strong retriever": ndcg(test.strong, test),
        "p_r * p_s": ndcg(test.p_r * test.p_s, test),
    }
    return scores | {name: ndcg(test.features @ ranker, test) for name, ranker in rankers.items()}, notes


def summary(rows: Sequence[Mapping[str, float]]) -> dict[str, tuple[float, float]]:
    """(mean, standard error) over seeds, by name."""
    summaries = {}
    for name in rows[0]:
        values = np.array([row[name] for row in rows])
        summaries[name] = (
            float(values.mean()),
            float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else 0.0,
        )
    return summaries


def _differences(world: World, pairs: Pairs) -> Tensor:
    return world.features[pairs.query, pairs.positive] - world.features[pairs.query, pairs.negative]


def plot(axes: Any, rows: list[Row]) -> bool:
    """nDCG@10 with standard errors: a bar per arm and setting."""
    figures = cells(rows)
    settings, arms = (list(dict.fromkeys(key[index] for key in figures)) for index in (0, 1))
    axes.figure.set_size_inches(9, 1 + 0.4 * len(arms))
    width = 0.8 / max(len(settings), 1)
    for number, setting in enumerate(settings):
        means, errors = zip(*(figures[setting, arm] for arm in arms), strict=True)
        positions = [-index - number * width for index in range(len(arms))]
        axes.barh(positions, means, width, xerr=errors, label=f"setting {setting}")
    axes.set_yticks([-index - 0.4 + width / 2 for index in range(len(arms))], arms, fontsize=8)
    axes.set_xlabel(f"{MEASURE}, true relevance")
    axes.legend(fontsize=8)
    return bool(arms)


def table(rows: list[Row]) -> str:
    """A line per arm, with mean and standard error in each setting."""
    figures = cells(rows)
    settings, arms = (list(dict.fromkeys(key[index] for key in figures)) for index in (0, 1))
    lines = [f"| {MEASURE} | {' | '.join(settings)} |", "| --- |" + " --- |" * len(settings)]
    for arm in arms:
        values = [figures[setting, arm] for setting in settings]
        lines.append(f"| {arm} | {' | '.join(f'{mean:.3f} ± {error:.3f}' for mean, error in values)} |")
    noted = [f"- {row.what}: {row.value:.4g}" for row in rows if row.unit == NOTE]
    return "\n".join([*lines, "", *noted, ""])


def cells(rows: Sequence[Row]) -> dict[tuple[str, str], tuple[float, float]]:
    """(setting, arm) -> (mean, standard error)."""
    values = {row.what: row.value for row in rows if row.unit == MEASURE}
    means = [name.split(": ", 1) for name in values if not name.endswith(ERROR)]
    return {(a, b): (values[f"{a}: {b}"], values[f"{a}: {b}{ERROR}"]) for a, b in means}


def main() -> None:
    """Runs the benchmark."""
    arguments = parser(__doc__)
    arguments.add_argument("--seeds", type=int, default=5)
    options = arguments.parse_args()
    seeds = 2 if options.quick else options.seeds
    rows = []
    for name, setting in (("A", A), ("B", B)):
        used = replace(setting, train=60, test=60, steps=50) if options.quick else setting
        scored, noted = zip(*(one_seed(used, seed) for seed in range(seeds)), strict=True)
        for arm, (mean, error) in summary(scored).items():
            rows += [Row(f"{name}: {arm}", mean, MEASURE), Row(f"{name}: {arm}{ERROR}", error, MEASURE)]
        rows += [Row(f"{name}: {what}", mean, NOTE) for what, (mean, _) in summary(noted).items()]
    emit(rows, options.json)


if __name__ == "__main__":
    main()
