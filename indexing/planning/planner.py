"""Measures first stages for late interaction on a sample of a corpus; the module `recommendation` chooses among them.

Late interaction is searched in two steps: a source proposes candidates, and exact MaxSim ranks them. A source is good
if few candidates contain the exact top 10. How few depends on the encoder and the corpus, so it is measured: every
source packs, opens and searches the sample with the code that later serves it.
"""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from functools import partial, reduce
from typing import Any, get_args, get_type_hints

import numpy as np

from chamfer.core.errors import InvalidInput
from chamfer.core.protocols import Retriever
from chamfer.core.types import I64, Bool, Candidates, Document, Encoding, Query, TokenVectors, VectorKind, Vectors
from chamfer.indexing.families.fde.encoder import FdeConfig
from chamfer.indexing.families.inverted.bm25 import LexicalRetriever
from chamfer.indexing.families.multivector.search import MultivectorRetriever
from chamfer.indexing.families.registry import FAMILIES, make_family
from chamfer.indexing.planning.candidate_recall import growth, rank_by_maxsim, ranks_of_best, ranks_of_union, recall
from chamfer.indexing.rows.segment_part import SegmentPart

Pool = Callable[[TokenVectors, str], TokenVectors]
Search = Callable[[Any, int], Candidates]
ReportSource = Callable[[str, int, int], None]
"""Called with (name of the source, number of sources done, number of sources) as the measurement proceeds."""

K = 10
_TIMED_QUERIES = 20
_TIMED_DEPTH = 100
_FDE_SIZES = ((3, 8), (4, 8), (5, 8), (5, 16))  # k_sim and d_proj of the paper's four sizes, 20 repetitions
_LEMUR_DIMS = (512, 1280)
_CENTROIDS = 4096
_CODES = ("int8", "int4", "int3", "int2")
_UNIONS = ("lexical", "sparse", "fde 2560", "fde 10240", f"centroids {_CENTROIDS}")  # each beside dense


@dataclass(frozen=True, slots=True)
class Source:
    """A first stage to measure: a family with parameters, over token vectors pooled by `pooling` ("" for none).

    A `direct` source needs no second step: MaxSim over all token vectors, as floats, codes or pooled. A multivector
    channel with centroids proposes candidates and then scores them by its own token vectors.
    """

    name: str
    family: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    pooling: str = ""

    @property
    def direct(self) -> bool:
        return self.holds_tokens and not self.parameters.get("centroids")

    @property
    def holds_tokens(self) -> bool:
        """Whether its bytes include those of the token vectors."""
        return self.family == "multivector"


@dataclass(frozen=True, slots=True)
class Sample:
    """Documents and queries, encoded; `exact` ranks all documents for every query by MaxSim.

    rescore_ms   CPU milliseconds of MaxSim of one query with 1,000 documents
    token_bytes  bytes of the exact token vectors of a document
    """

    documents: Sequence[Document]
    queries: Sequence[Query]
    encoding: Encoding
    encoded_queries: Encoding
    exact: Candidates
    rescore_ms: float
    token_bytes: float


@dataclass(frozen=True, slots=True)
class Costs:
    """What a source costs.

    bytes_per_document   of its own arrays; a source that is not direct needs those of the token vectors as well
    learn_s              CPU seconds of learning the codec, once for a collection
    build_ms, query_ms   CPU milliseconds of packing a document, and of a query over the whole sample
    """

    bytes_per_document: float
    learn_s: float = 0.0
    build_ms: float = 0.0
    query_ms: float = 0.0

    def __add__(self, other: Costs) -> Costs:
        return Costs(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True, slots=True)
class Measured:
    """How one source, or a union of several, performs on the sample.

    rankings             all documents in each source's order
    ranks_10, ranks_100  i64 [Q, k]: rank of each of the exact top k (chamfer.indexing.planning.candidate_recall)
    exponent             growth of the candidates needed with the collection (see candidate_recall.growth)
    final                the final order of all documents; None if it is that of exact MaxSim
    kept                 share of the exact top 10 in the first 10 of `final`
    rescore_ms           CPU milliseconds of the final order for 1,000 documents; None: that of the sample
    """

    name: str
    sources: tuple[Source, ...]
    rankings: tuple[Candidates, ...]
    ranks_10: I64
    ranks_100: I64
    exponent: float
    costs: Costs
    final: Candidates | None = None
    kept: float = 1.0
    rescore_ms: float | None = None

    @property
    def direct(self) -> bool:
        return self.sources[0].direct

    @property
    def holds_tokens(self) -> bool:
        return any(source.holds_tokens for source in self.sources)


EXACT = Source("exact MaxSim", "multivector")


def sources(kinds: Collection[VectorKind]) -> list[Source]:
    """The sources to measure with an encoder that produces these kinds of vectors."""
    listed = [Source("lexical", "lexical")]
    if VectorKind.DENSE in kinds:
        listed.append(Source("dense", "dense", {"storage": "float16"}))
    if VectorKind.SPARSE in kinds:
        # Read from an instance: FAMILIES holds callables, which need not have the attribute `kind`.
        listed += [Source(name, name) for name in sorted(FAMILIES) if make_family(name).kind == VectorKind.SPARSE]
    listed += [Source(f"multivector {code}", "multivector", {"storage": code}) for code in _CODES]
    listed += [Source(f"multivector {name}", "multivector", pooling=name) for name in ("w0x8", "w0x32", "w0x64")]
    listed.append(Source("multivector int4 w0x75p", "multivector", {"storage": "int4"}, pooling="w0x75p"))
    listed.append(Source(f"centroids {_CENTROIDS}", "multivector", {"centroids": _CENTROIDS}))
    for k_sim, d_proj in _FDE_SIZES:
        name, size = f"fde {20 * 2**k_sim * d_proj}", {"k_sim": k_sim, "d_proj": d_proj}
        listed += [Source(name, "fde", size), Source(f"{name} centred", "fde", {**size, "centred": True})]
    small = {"k_sim": 4, "d_proj": 8}
    listed.append(Source("fde 2560 unfilled", "fde", {**small, "fill": False}))
    for storage in get_args(get_type_hints(FdeConfig)["storage"]):
        if storage != FdeConfig.storage:
            listed.append(Source(f"fde 2560 {storage}", "fde", {**small, "storage": storage}))
    return [*listed, *(Source(f"lemur {dim}", "lemur", {"dim": dim}) for dim in _LEMUR_DIMS)]


def make_sample(
    documents: Sequence[Document], queries: Sequence[Query], encoding: Encoding, encoded_queries: Encoding
) -> Sample:
    """Ranks the encoded sample by MaxSim: the first 100 exactly, the rest by the fast pass.

    InvalidInput without token vectors, documents or queries.
    """
    if not len(documents) or not len(queries):
        raise InvalidInput(f"the planner got {len(documents)} documents and {len(queries)} queries; it needs both")
    if encoding.tokens is None or encoded_queries.tokens is None:
        raise InvalidInput("the planner needs token vectors; choose an encoder that produces them (--encoder)")
    retriever, opened = _open(EXACT, documents, encoding)
    if not isinstance(retriever, MultivectorRetriever):
        raise InvalidInput(f"{EXACT.name} is not searched by the multivector family")
    tokens = encoded_queries.tokens
    exact = rank_by_maxsim(retriever, tokens)
    rows = np.arange(len(documents), dtype=np.int64)[None]
    timed = range(min(_TIMED_QUERIES, len(queries)))
    begin = time.process_time()
    for number in timed:
        retriever.score(tokens.take([number]), rows)
    cost = (time.process_time() - begin) * 1e6 / (len(timed) * len(documents))
    return Sample(documents, queries, encoding, encoded_queries, exact, cost, opened.bytes_per_document)


def measure_all(sample: Sample, pool: Pool, report: ReportSource) -> list[Measured]:
    """Every source that the sample's vectors allow, and unions with the dense one."""
    kinds = [kind for kind in VectorKind if getattr(sample.encoding, kind.value) is not None]
    wanted = sources(kinds)
    results = [measure_exact(sample)]
    for number, source in enumerate(wanted):
        report(source.name, number, len(wanted))
        results.append(measure(source, sample, pool))
    report("done", len(wanted), len(wanted))
    named = {each.name: each for each in results}
    by_centroids = named[f"centroids {_CENTROIDS}"]
    results += [in_form(by_centroids, named[f"multivector {code}"], sample) for code in _CODES]
    if "dense" in named:
        results += [union([named["dense"], named[name]], sample) for name in _UNIONS if name in named]
    return results


def measure_exact(sample: Sample) -> Measured:
    """MaxSim over all documents: exact, and the most expensive."""
    whole = sample.rescore_ms * len(sample.documents) / 1000
    return _measured("exact MaxSim", (EXACT,), (sample.exact,), sample, Costs(sample.token_bytes, query_ms=whole))


def measure(source: Source, sample: Sample, pool: Pool) -> Measured:
    """Builds the source over the sample and searches it with every query."""
    encoding, n = sample.encoding, len(sample.documents)
    if source.pooling and encoding.tokens is not None:
        pool(encoding.tokens.take([0]), source.pooling)  # compiles
    begin = time.process_time()
    if source.pooling and encoding.tokens is not None:
        encoding = replace(encoding, tokens=pool(encoding.tokens, source.pooling))
    pooled = time.process_time() - begin
    retriever, opened = _open(source, sample.documents, encoding)
    queries = _queries(source, retriever, sample)
    timed = range(min(_TIMED_QUERIES, len(sample.queries)))
    search: Search = retriever.search
    if isinstance(retriever, MultivectorRetriever) and not source.direct:
        search = retriever.centroid_candidates
    search(queries.take([0]), min(_TIMED_DEPTH, n))  # compiles
    begin = time.process_time()
    for number in timed:
        search(queries.take([number]), min(_TIMED_DEPTH, n))
    seconds = time.process_time() - begin
    costs = opened + Costs(0.0, 0.0, pooled * 1e3 / n, seconds * 1e3 / len(timed))
    if isinstance(retriever, MultivectorRetriever) and isinstance(queries, TokenVectors) and source.direct:
        ranking = rank_by_maxsim(retriever, queries)
    else:
        ranking = search(queries, n)
    return _measured(source.name, (source,), (ranking,), sample, costs)


def in_form(by_centroids: Measured, form: Measured, sample: Sample) -> Measured:
    """The candidates of centroids, scored by token vectors in the form of a direct source that was measured.

    A document is missed if either misses it; the misses are assumed to be independent.
    """
    code = form.sources[0].parameters
    name = f"{by_centroids.name}, {code['storage']}"
    size = by_centroids.costs.bytes_per_document - sample.token_bytes + form.costs.bytes_per_document
    return replace(
        by_centroids,
        name=name,
        sources=(Source(name, "multivector", {**by_centroids.sources[0].parameters, **code}),),
        costs=replace(by_centroids.costs, bytes_per_document=size),
        final=form.rankings[0],
        kept=recall(form.ranks_10, K),
        rescore_ms=form.costs.query_ms * 1000 / len(sample.documents),
    )


def union(parts: Sequence[Measured], sample: Sample) -> Measured:
    """Several sources, each of which contributes the same number of candidates."""
    total = reduce(operator.add, (part.costs for part in parts))
    names = " + ".join(part.name for part in parts)
    rankings = tuple(ranking for part in parts for ranking in part.rankings)
    return _measured(names, tuple(source for part in parts for source in part.sources), rankings, sample, total)


def candidates_at(measured: Measured, query: int, depth: int) -> I64:
    """Rows i64 that enter the second step at this depth, without duplicates; those of a single source in its order."""
    rows = np.concatenate([ranking.of(query)[0][: depth // len(measured.rankings)] for ranking in measured.rankings])
    return rows[np.sort(np.unique(rows, return_index=True)[1])]


def final_order(measured: Measured, sample: Sample, query: int, depth: int) -> I64:
    """The rows that a search returns: in a direct source's order, otherwise the candidates in the order of MaxSim."""
    if measured.direct:
        return measured.rankings[0].of(query)[0][:depth]
    order = (sample.exact if measured.final is None else measured.final).of(query)[0]
    return order[np.isin(order, candidates_at(measured, query, depth))]


def _measured(
    name: str, measured: tuple[Source, ...], rankings: tuple[Candidates, ...], sample: Sample, costs: Costs
) -> Measured:
    def ranks(k: int, members: Bool | None) -> I64:
        return ranks_of_union([ranks_of_best(each, sample.exact, k, members) for each in rankings])

    exponent = growth(partial(ranks, K), len(sample.documents))
    return Measured(name, measured, rankings, ranks(K, None), ranks(100, None), exponent, costs)


def _open(source: Source, documents: Sequence[Document], encoding: Encoding) -> tuple[Retriever[Any], Costs]:
    """(retriever over one segment of the documents, the costs of learning and packing)."""
    family = make_family(source.family, source.parameters)
    n = len(documents)
    begin = time.process_time()
    family = family.with_codec(family.learn(encoding))
    learnt = time.process_time()
    arrays = {name: np.asarray(array) for name, array in family.pack(documents, encoding).items()}
    packed = time.process_time()
    size = sum(array.nbytes for array in arrays.values()) / n
    retriever = family.open([SegmentPart(arrays, None, n)])
    return retriever, Costs(size, learnt - begin, (packed - learnt) * 1e3 / n)


def _queries(source: Source, retriever: Retriever[Any], sample: Sample) -> Vectors:
    """The sample's queries as this source reads them; pooling applies only to documents."""
    if isinstance(retriever, LexicalRetriever):
        return retriever.encode_queries([query.text for query in sample.queries])
    kind = make_family(source.family).kind
    if kind is None:
        raise InvalidInput(f"source {source.name} reads no vectors of queries")
    return sample.encoded_queries.vectors(kind)
