"""Which first stage finds what exact MaxSim would find, at what price: measured on a sample, extrapolated.

Late interaction is searched in two steps: a source gives candidates, exact MaxSim orders them. A source is good if the
exact top 10 are among few candidates. How good depends on the encoder and the corpus, so it is measured: every source
packs, opens and searches the sample by the code that serves it later.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from chamfer.errors import InvalidInput
from chamfer.types import I64, Candidates, Document, Encoding, TokenVectors, VectorKind, Vectors
from indexing.family import SegmentPart
from indexing.registry import make_family

Pool = Callable[[TokenVectors, str], TokenVectors]
DEPTHS = (100, 200, 500, 1000)
TARGETS = (0.90, 0.95, 0.99)


@dataclass(frozen=True, slots=True)
class Source:
    """A first stage to measure: a family with parameters, over token vectors pooled by `pooling` ("" for all).

    A collection has one set of token vectors: a pooled source beside exact ones is measured to compare, not offered.
    """

    name: str
    family: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    pooling: str = ""


@dataclass(frozen=True, slots=True)
class Measured:
    """What a source does on the sample.

    recall_10, recall_100    share of the exact top 10 (100) among the first DEPTHS candidates
    candidates               how many candidates hold 90, 95 and 99 % of the exact top 10; None: more than measured
    bytes_per_document       of the source's own arrays (the exact token vectors come on top for all)
    build_ms, query_ms       CPU of one thread, a document and a query over the whole sample
    """

    name: str
    sources: tuple[Source, ...]
    found: Candidates
    recall_10: dict[int, float]
    recall_100: dict[int, float]
    candidates: dict[float, int | None]
    bytes_per_document: float
    build_ms: float
    query_ms: float


@dataclass(frozen=True, slots=True)
class Sample:
    """Documents and queries, encoded; `exact` ranks all documents for every query by exact MaxSim."""

    documents: Sequence[Document]
    encoding: Encoding
    queries: Encoding
    exact: Candidates
    rescore_ms: float  # CPU of MaxSim, a query and 1,000 documents
    token_bytes: float  # of the exact token vectors, a document


@dataclass(frozen=True, slots=True)
class Option:
    """A measured first stage with a number of candidates, at the full size of the corpus."""

    measured: Measured
    depth: int
    recall: float
    query_ms: float
    bytes_per_document: float


SOURCES = (
    Source("dense", "dense", {"storage": "float16"}),
    Source("multivector c0x8", "multivector", pooling="c0x8"),
    Source("multivector c0x32", "multivector", pooling="c0x32"),
    *(
        Source(f"fde {20 * 2**k * p}{extra}", "fde", {"k_sim": k, "d_proj": p, **more})
        for k, p in ((3, 8), (4, 8), (5, 8), (5, 16))
        for extra, more in (
            ("", {}),
            (" centred", {"centred": True}),
            *(((" unfilled", {"fill": False}), (" float16", {"storage": "float16"})) if (k, p) == (4, 8) else ()),
        )
    ),
)


def make_sample(documents: Sequence[Document], encoding: Encoding, queries: Encoding) -> Sample:
    """Encodes nothing: takes encodings with token vectors, and ranks the sample exactly."""
    if encoding.tokens is None or queries.tokens is None:
        raise InvalidInput("the planner needs token vectors; choose an encoder that gives them (--encoder)")
    if not len(documents) or not len(queries):
        raise InvalidInput(f"{len(documents)} documents and {len(queries)} queries; both are needed")
    retriever, n_bytes = _open("multivector", {}, documents, encoding)
    exact = retriever.search(queries.tokens, len(documents))
    rows = np.tile(np.arange(len(documents), dtype=np.int64), (min(len(queries), 20), 1))
    some = queries.tokens.take(range(len(rows)))
    retriever.score(some, rows[:, :1])  # compiles
    begin = time.process_time()
    retriever.score(some, rows)
    spent = (time.process_time() - begin) * 1e6 / rows.size
    return Sample(documents, encoding, queries, exact, spent, n_bytes / len(documents))


def measure(source: Source, sample: Sample, pool: Pool) -> Measured:
    """Builds the source over the sample and searches it with every query."""
    encoding = sample.encoding
    begin = time.process_time()
    if source.pooling and encoding.tokens is not None:
        encoding = replace(encoding, tokens=pool(encoding.tokens, source.pooling))
    retriever, n_bytes = _open(source.family, source.parameters, sample.documents, encoding)
    built = time.process_time() - begin
    kind = make_family(source.family).kind
    queries: Vectors = sample.queries.vectors(kind or VectorKind.TOKENS)
    depth = min(DEPTHS[-1], len(sample.documents))
    retriever.search(queries.take([0]), depth)  # compiles
    begin = time.process_time()
    found = retriever.search(queries, depth)
    asked = time.process_time() - begin
    n = len(sample.documents)
    costs = n_bytes / n, built * 1e3 / n, asked * 1e3 / len(sample.queries)
    return _judged(source.name, (source,), found, sample, costs)


def union(parts: Sequence[Measured], sample: Sample) -> Measured:
    """Several sources whose candidates are taken in turn, each document once."""
    costs = (
        sum(part.bytes_per_document for part in parts),
        sum(part.build_ms for part in parts),
        sum(part.query_ms for part in parts),
    )
    name = " + ".join(part.name for part in parts)
    sources = tuple(source for part in parts for source in part.sources)
    return _judged(name, sources, interleaved([part.found for part in parts]), sample, costs)


def options(measured: Sequence[Measured], sample: Sample, n_documents: int) -> list[Option]:
    """Every source at every depth, its scan extrapolated linearly to n_documents."""
    larger = n_documents / len(sample.documents)
    return [
        Option(
            each,
            depth,
            each.recall_10[depth],
            each.query_ms * larger + sample.rescore_ms * min(depth, n_documents) / 1000,
            each.bytes_per_document + sample.token_bytes,
        )
        for each in measured
        if not any(source.pooling for source in each.sources)
        for depth in DEPTHS
        if depth < n_documents
    ]


def direct(sample: Sample, n_documents: int) -> float:
    """Milliseconds a query of exact MaxSim over the whole corpus, extrapolated."""
    return sample.rescore_ms * n_documents / 1000


def recommend(
    choices: Sequence[Option], *, floor: float, budget_ms: float | None, budget_bytes: float | None
) -> tuple[Option | None, str]:
    """(the cheapest option that finds `floor` of the exact top 10 within the budgets, why); None if there is none."""
    affordable = [
        option
        for option in choices
        if (budget_ms is None or option.query_ms <= budget_ms)
        and (budget_bytes is None or option.bytes_per_document <= budget_bytes)
    ]
    good = [option for option in affordable if option.recall >= floor]
    if good:
        best = min(good, key=lambda o: (o.query_ms, o.bytes_per_document))
        return best, f"the cheapest that finds at least {floor:.0%} of the exact top 10 ({best.recall:.1%})"
    if affordable:
        best = max(affordable, key=lambda o: (o.recall, -o.query_ms))
        return best, f"no option within the budgets finds {floor:.0%} of the exact top 10; this one finds the most"
    return None, "no option is within the budgets; the exact token vectors alone may exceed them"


def pareto(choices: Sequence[Option]) -> list[Option]:
    """The options that no other one beats in both recall and time, by time."""
    out: list[Option] = []
    for option in sorted(choices, key=lambda o: (o.query_ms, -o.recall)):
        if not out or option.recall > out[-1].recall:
            out.append(option)
    return out


def _judged(
    name: str, sources: tuple[Source, ...], found: Candidates, sample: Sample, costs: tuple[float, float, float]
) -> Measured:
    return Measured(
        name,
        sources,
        found,
        {d: recall(found, sample.exact, d, 10) for d in DEPTHS},
        {d: recall(found, sample.exact, d, 100) for d in DEPTHS},
        {target: needed(found, sample.exact, target, 10) for target in TARGETS},
        *costs,
    )


def recall(found: Candidates, exact: Candidates, depth: int, k: int) -> float:
    """Mean share of the exact top k rows among the first `depth` candidates."""
    return float(np.mean([np.isin(_top(exact, q, k), found.of(q)[0][:depth]).mean() for q in range(len(exact))]))


def needed(found: Candidates, exact: Candidates, target: float, k: int) -> int | None:
    """The smallest depth at which `recall` reaches the target; None if even all candidates do not."""
    ranks: list[I64] = []
    for q in range(len(exact)):
        rows = found.of(q)[0]
        place = {int(row): i + 1 for i, row in enumerate(rows)}
        ranks.append(np.array([place.get(int(row), np.iinfo(np.int64).max) for row in _top(exact, q, k)]))
    # Every query counts alike: a row found is worth 1 / |its own top|.
    worth = np.concatenate([np.full(len(r), 1 / len(r)) for r in ranks if len(r)])
    depth = np.concatenate([r for r in ranks if len(r)])
    order = np.argsort(depth, kind="stable")
    reached = np.cumsum(worth[order]) / max(sum(1 for r in ranks if len(r)), 1)
    at = int(np.searchsorted(reached, target - 1e-9))
    if at >= len(order) or depth[order[at]] == np.iinfo(np.int64).max:
        return None
    return int(depth[order[at]])


def interleaved(parts: Sequence[Candidates]) -> Candidates:
    """Candidates of several sources taken in turn, each row once; scores are minus the place."""
    rankings = []
    for q in range(len(parts[0])):
        columns = [part.of(q)[0] for part in parts]
        turns = [row for turn in _zip_longest(columns) for row in turn]
        rankings.append(list(dict.fromkeys(turns)))
    width = max(map(len, rankings))
    rows = np.full((len(rankings), width), -1, dtype=np.int64)
    scores = np.full((len(rankings), width), -np.inf, dtype=np.float32)
    for q, ranking in enumerate(rankings):
        rows[q, : len(ranking)] = ranking
        scores[q, : len(ranking)] = -np.arange(len(ranking), dtype=np.float32)
    return Candidates(rows, scores)


def _zip_longest(columns: Sequence[I64]) -> list[list[int]]:
    longest = max(map(len, columns), default=0)
    return [[int(column[i]) for column in columns if i < len(column)] for i in range(longest)]


def _top(exact: Candidates, q: int, k: int) -> I64:
    return exact.of(q)[0][:k]


def _open(
    family_name: str, parameters: Mapping[str, Any], documents: Sequence[Document], encoding: Encoding
) -> tuple[Any, int]:
    """(retriever over one segment, bytes of its arrays)."""
    family = make_family(family_name, parameters)
    family = family.with_codec(family.learn(encoding))
    arrays = family.pack(documents, encoding)
    retriever = family.open([SegmentPart(arrays, None, len(documents))])
    return retriever, sum(array.nbytes for array in arrays.values())


def exact_order(found: Candidates, exact: Candidates, depth: int) -> list[I64]:
    """The first `depth` candidates of every query as exact MaxSim orders them."""
    out = []
    for q in range(len(exact)):
        order = exact.of(q)[0]
        out.append(order[np.isin(order, found.of(q)[0][:depth])])
    return out


def settings_of(option: Option) -> tuple[list[str], dict[str, dict[str, Any]], dict[str, int]]:
    """(channels to build, their parameters, depth of each first-stage channel) of an option."""
    channels = ["multivector"]
    parameters: dict[str, dict[str, Any]] = {}
    depths: dict[str, int] = {}
    share = -(-option.depth // len(option.measured.sources))
    for source in option.measured.sources:
        if source.family not in channels:
            channels.append(source.family)
        if source.parameters:
            parameters[source.family] = dict(source.parameters)
        depths[source.family] = share
    return sorted(channels), parameters, depths
