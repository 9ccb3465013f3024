"""Measures candidate channels before a build and refuses those that lose too much of the exact MaxSim ranking.

MUVERA's encodings fail silently on some encoders: every score looks plausible. Each channel of MaxSim candidates is
therefore measured on the sample from which the build trains its codecs, before the other documents are encoded, and
with the code that serves searches.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from chamfer.core.errors import InvalidInput
from chamfer.core.types import Array, Candidates, Document, Encoding, Query, TokenVectors, VectorKind
from chamfer.indexing.collection.recall_report import ChannelRecall, FloorConfig, K
from chamfer.indexing.families.family import Family
from chamfer.indexing.families.multivector.config import MultivectorConfig
from chamfer.indexing.families.multivector.family import MultivectorFamily
from chamfer.indexing.families.registry import make_family
from chamfer.indexing.planning.candidate_recall import growth, rank_by_maxsim, ranks_of_best, recall
from chamfer.indexing.rows.segment_part import Codec, SegmentPart

_QUERY_WORDS = 12
_ALTERNATIVES: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "fde": ({"k_sim": 5, "d_proj": 16}, {"centred": True}, {"fill": False}),
    "lemur": ({"dim": 4096}, {"epochs": 50}),
}


def approximates_maxsim(family: Family) -> bool:
    """Whether a family retrieves candidates for MaxSim from token vectors, without computing it exactly."""
    return family.kind == VectorKind.TOKENS and family.name != MultivectorFamily.name


def sampled_queries(documents: Sequence[Document], n: int, seed: int = 1) -> list[Query]:
    """Queries for a corpus without any: twelve consecutive words from each of at most n random documents."""
    draw = random.Random(seed)
    texts = [words for document in documents if (words := document.content.split())]
    queries = []
    for number, words in enumerate(draw.sample(texts, min(n, len(texts)))):
        start = draw.randrange(max(1, len(words) - _QUERY_WORDS + 1))
        queries.append(Query(f"made-up-{number}", " ".join(words[start : start + _QUERY_WORDS])))
    return queries


class FloorMeasure:
    """Measures the recall of channels on one encoded sample. The exact ranking is computed once."""

    def __init__(
        self, encoding: Encoding, documents: Sequence[Document], queries: Encoding, made_up: bool, config: FloorConfig
    ) -> None:
        self._encoding = encoding
        self._documents = documents
        self._queries = queries
        self._made_up = made_up
        self._config = config
        family = MultivectorFamily(MultivectorConfig())
        retriever = family.open([SegmentPart(_in_memory(family.pack(documents, encoding)), None, len(documents))])
        self._exact: Candidates = rank_by_maxsim(retriever, self._tokens)

    @property
    def _tokens(self) -> TokenVectors:
        tokens = self._queries.tokens
        if tokens is None:
            raise InvalidInput("the recall floor needs token vectors of the queries")
        return tokens

    def channel(self, family: Family, codec: Codec | None = None) -> ChannelRecall:
        """The recall of `family` with the given codec; without one, a codec is trained on the sample."""
        n = len(self._documents)
        trained = family.with_codec(family.learn(self._encoding) if codec is None else codec)
        part = SegmentPart(_in_memory(trained.pack(self._documents, self._encoding)), None, n)
        candidates = trained.open([part]).search(self._queries.vectors(family.kind or VectorKind.TOKENS), n)
        ranks = ranks_of_best(candidates, self._exact, K)
        depth = self._config.depth
        depths = sorted({int(depth * 2 ** (-half / 2)) for half in range(20)} - {0})
        return ChannelRecall(
            round(recall(ranks, depth), 4),
            depth,
            round(growth(partial(ranks_of_best, candidates, self._exact, K), n), 3),
            n,
            len(self._queries),
            self._made_up,
            {str(d): round(recall(ranks, d), 4) for d in depths},
        )

    def alternatives(self, name: str, parameters: Mapping[str, Any]) -> dict[str, float]:
        """The recall of other parameters of family `name` and of the dense vector, by setting, best first."""
        recalls: dict[str, float] = {}
        for change in _ALTERNATIVES.get(name, ()):
            if any(parameters.get(key) != value for key, value in change.items()):
                setting = ", ".join(f"{name}.{key} = {str(value).lower()}" for key, value in change.items())
                recalls[setting] = self.channel(make_family(name, {**parameters, **change})).recall
        if self._encoding.dense is not None and self._queries.dense is not None:
            recalls["the dense channel"] = self.channel(make_family("dense")).recall
        return dict(sorted(recalls.items(), key=lambda item: -item[1]))


def refusal(
    channel: str, measured: ChannelRecall, floor: float, n_documents: int, alternatives: Mapping[str, float]
) -> str:
    """The error message: why the build is refused, and which settings to change."""
    kind = "queries sampled from the documents" if measured.made_up else "queries"
    extrapolated = (
        f"; {measured.at(n_documents):.1%} is expected over {n_documents:,} documents"
        if n_documents > measured.documents
        else ""
    )
    better = "; ".join(f"{what}: {value:.1%}" for what, value in alternatives.items() if value > measured.recall)
    return (
        f"channel {channel!r} finds {measured.recall:.1%} of the exact MaxSim top {K} in {measured.depth} candidates "
        f"({measured.queries} {kind}, {measured.documents:,} documents{extrapolated}), below "
        f"build.floor.recall = {floor:g}. "
        + (f"On the same sample, {better}. " if better else "None of the other settings that were tried finds more. ")
        + "More candidates help too: raise build.floor.depth and the rescore depth of the plan. Run `chamfer plan` to "
        "compare every candidate source, or pass --recall-floor 0 to build anyway."
    )


def _in_memory(arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {name: np.asarray(array) for name, array in arrays.items()}
