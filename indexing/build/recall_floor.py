"""The recall floor: a collection is not built with a candidate channel that loses what exact MaxSim would find.

MUVERA's encodings fail on some encoders, silently: every score looks plausible. So each channel that stands in for
MaxSim is measured on the sample that a build learns from, before the rest is encoded, by the code that serves it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from chamfer.core.errors import InvalidInput
from chamfer.core.types import Candidates, Document, Encoding, Query, TokenVectors, VectorKind
from chamfer.indexing.families.family import Family
from chamfer.indexing.families.multivector.config import MultivectorConfig
from chamfer.indexing.families.multivector.family import MultivectorFamily
from chamfer.indexing.families.registry import make_family
from chamfer.indexing.planning.candidate_recall import depth_in_sample, growth, rank_by_maxsim, ranks_of_best, recall
from chamfer.indexing.rows.segment_part import Codec, SegmentPart

K = 10
_QUERY_WORDS = 12
_ALTERNATIVES: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "fde": ({"k_sim": 5, "d_proj": 16}, {"centred": True}, {"fill": False}),
    "lemur": ({"dim": 4096}, {"epochs": 50}),
}


@dataclass(frozen=True, kw_only=True)
class FloorConfig:
    """What a channel that stands in for MaxSim must hold: `recall` of the exact top 10 in `depth` candidates.

    recall     below this share a build is refused; 0 accepts anything
    depth      candidates that are scored exactly later; the plan's rescore depth
    queries    how many queries it is measured with: given ones, or made up from the sample's documents
    """

    recall: float = 0.8
    depth: int = 100
    queries: int = 100

    def __post_init__(self) -> None:
        if not 0 <= self.recall <= 1 or self.depth < K or self.queries < 1:
            raise InvalidInput(
                f"build.floor recall {self.recall}, depth {self.depth}, queries {self.queries}; "
                f"expected 0 <= recall <= 1, depth >= {K} and queries >= 1"
            )


@dataclass(frozen=True, slots=True)
class ChannelRecall:
    """What a channel held of the exact top 10 in the sample; part of the snapshot's manifest.

    recall    at `depth` candidates of the sample's `documents`; mean over `queries`
    exponent  how the candidates needed grow with the collection (chamfer.indexing.planning.candidate_recall.growth)
    by_depth  recall at other depths of the sample, from which larger collections are extrapolated
    made_up   the queries are stretches of the documents' own text
    """

    recall: float
    depth: int
    exponent: float
    documents: int
    queries: int
    made_up: bool
    by_depth: Mapping[str, float]

    def at(self, n_documents: int) -> float:
        """The recall expected at `depth` in a collection of so many documents: that of the next smaller known depth."""
        wanted = depth_in_sample(self.depth, self.documents, n_documents, self.exponent)
        known = [(int(depth), value) for depth, value in self.by_depth.items() if int(depth) <= wanted]
        return max(known)[1] if known else 0.0


def stands_in(family: Family) -> bool:
    """Whether a family gives candidates for MaxSim from the token vectors."""
    return family.kind == VectorKind.TOKENS and family.name != MultivectorFamily.name


def made_up_queries(documents: Sequence[Document], n: int, seed: int = 1) -> list[Query]:
    """Queries where there are none: twelve words in a row out of random documents, each used once at most."""
    draw = random.Random(seed)
    texts = [words for document in documents if (words := document.content.split())]
    out = []
    for number, words in enumerate(draw.sample(texts, min(n, len(texts)))):
        start = draw.randrange(max(1, len(words) - _QUERY_WORDS + 1))
        out.append(Query(f"made-up-{number}", " ".join(words[start : start + _QUERY_WORDS])))
    return out


class FloorMeasure:
    """Measures channels on one encoded sample. The exact ranking is made once."""

    def __init__(
        self, encoding: Encoding, documents: Sequence[Document], queries: Encoding, made_up: bool, config: FloorConfig
    ) -> None:
        self._encoding = encoding
        self._documents = documents
        self._queries = queries
        self._made_up = made_up
        self._config = config
        family = MultivectorFamily(MultivectorConfig())
        retriever = family.open([SegmentPart(_plain(family.pack(documents, encoding)), None, len(documents))])
        self._exact: Candidates = rank_by_maxsim(retriever, self._tokens)

    @property
    def _tokens(self) -> TokenVectors:
        tokens = self._queries.tokens
        if tokens is None:
            raise InvalidInput("the recall floor needs token vectors of the queries")
        return tokens

    def channel(self, family: Family, codec: Codec | None = None) -> ChannelRecall:
        """What `family` holds, with the codec given or learnt from the sample."""
        n = len(self._documents)
        learnt = family.with_codec(family.learn(self._encoding) if codec is None else codec)
        part = SegmentPart(_plain(learnt.pack(self._documents, self._encoding)), None, n)
        found = learnt.open([part]).search(self._queries.vectors(family.kind or VectorKind.TOKENS), n)
        ranks = ranks_of_best(found, self._exact, K)
        depth = self._config.depth
        depths = sorted({int(depth * 2 ** (-half / 2)) for half in range(20)} - {0})
        return ChannelRecall(
            round(recall(ranks, depth), 4),
            depth,
            round(growth(partial(ranks_of_best, found, self._exact, K), n), 3),
            n,
            len(self._queries),
            self._made_up,
            {str(d): round(recall(ranks, d), 4) for d in depths},
        )

    def alternatives(self, name: str, parameters: Mapping[str, Any]) -> dict[str, float]:
        """What else would hold how much, by a description, best first; the dense vector where there is one."""
        out: dict[str, float] = {}
        for change in _ALTERNATIVES.get(name, ()):
            if any(parameters.get(key) != value for key, value in change.items()):
                text = ", ".join(f"{name}.{key} = {str(value).lower()}" for key, value in change.items())
                out[text] = self.channel(make_family(name, {**parameters, **change})).recall
        if self._encoding.dense is not None and self._queries.dense is not None:
            out["the dense channel"] = self.channel(make_family("dense")).recall
        return dict(sorted(out.items(), key=lambda item: -item[1]))


def refusal(channel: str, found: ChannelRecall, floor: float, n_documents: int, better: Mapping[str, float]) -> str:
    """Why a build is refused, and what can be done."""
    where = f"{found.queries} {'made-up ' if found.made_up else ''}queries over {found.documents:,} documents"
    expected = found.at(n_documents)
    large = f", expected {expected:.1%} over {n_documents:,}" if n_documents > found.documents else ""
    tried = "; ".join(f"{what}: {value:.1%}" for what, value in better.items() if value > found.recall)
    return (
        f"channel {channel!r} holds {found.recall:.1%} of the exact MaxSim top {K} in {found.depth} candidates "
        f"({where}{large}), below build.floor.recall = {floor:g}. "
        + (f"On the same sample {tried}. " if tried else "No other size or setting tried held more. ")
        + "More candidates help too (build.floor.depth, with a plan that rescores as many). `chamfer plan` measures "
        "all that there is; --recall-floor 0 builds it all the same"
    )


def _plain(arrays: Mapping[str, Any]) -> dict[str, Any]:
    return {name: np.asarray(array) for name, array in arrays.items()}
