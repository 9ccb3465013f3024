"""What the pipeline needs of a collection, and what each of its channels can do.

`opened_channels` is the one place that decides, when a pipeline is made, which optional capabilities
(chamfer.core.protocols) a channel has. Everything else reads the typed fields of `SearchChannel`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from chamfer.core.errors import Internal
from chamfer.core.protocols import Expandable, Rescorer, Retriever, TextQueryEncoder, TokenExpandable
from chamfer.core.types import I64, Bool, Document, VectorKind
from chamfer.indexing.collection.filters import Condition
from chamfer.indexing.families.cur.family import CurRetriever

# The kind of vectors that a retriever takes is known at run time only: it is the `kind` of its family. The parameter
# stands for that kind; all other parts of the signatures are checked.
AnyRetriever = Retriever[Any]
AnyRescorer = Rescorer[Any]
AnyExpandable = Expandable[Any]
AnyTokenExpandable = TokenExpandable[Any]


class FamilyView(Protocol):
    """An index family (chamfer.indexing.families.family.Family), as far as the service reads it."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> VectorKind | None: ...

    @property
    def config(self) -> object: ...


class ChannelView(Protocol):
    """A channel of an opened collection, as far as the service reads it."""

    @property
    def name(self) -> str: ...

    @property
    def family(self) -> FamilyView: ...

    @property
    def retriever(self) -> AnyRetriever: ...


class CollectionView(Protocol):
    """An opened collection (`chamfer.indexing.collection.collection.Collection`), as far as the service reads it."""

    @property
    def snapshot(self) -> str: ...

    @property
    def channels(self) -> Mapping[str, ChannelView]: ...

    @property
    def n_rows(self) -> int: ...

    @property
    def encoder_name(self) -> str | None: ...

    @property
    def encoder_fingerprint(self) -> str | None: ...

    @property
    def bytes_per_document(self) -> float: ...

    def __len__(self) -> int: ...

    def bytes_by_part(self) -> dict[str, int]: ...

    def allowed(self, condition: Condition | None, /) -> Bool | None: ...

    def documents(self, rows: I64, /) -> list[Document]: ...

    def doc_ids(self, rows: I64, /) -> list[str]: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class SearchChannel:
    """A channel with its capabilities; None where it lacks one. `kind` is None where the family reads query texts.

    rescorer          exact scores of given rows
    expandable        stored vectors that feedback can read
    token_expandable  the same for token vectors, with their commonness
    text_encoder      encodes query texts itself
    anchor_scores     stored cross-encoder scores (family `cur`)
    """

    name: str
    kind: VectorKind | None
    retriever: AnyRetriever
    rescorer: AnyRescorer | None
    expandable: AnyExpandable | None
    token_expandable: AnyTokenExpandable | None
    text_encoder: TextQueryEncoder | None
    anchor_scores: CurRetriever | None

    def required_rescorer(self) -> AnyRescorer:
        """The rescorer; Internal if there is none, since plans that need one are refused."""
        if self.rescorer is None:
            raise Internal(f"channel {self.name} was admitted for rescoring but cannot rescore")
        return self.rescorer

    def required_expandable(self) -> AnyExpandable:
        """The expandable retriever; Internal if there is none, since plans that need one are refused."""
        if self.expandable is None:
            raise Internal(f"channel {self.name} was admitted for feedback but does not support it")
        return self.expandable

    def required_token_expandable(self) -> AnyTokenExpandable:
        """The expandable retriever of token vectors; Internal if there is none."""
        if self.token_expandable is None:
            raise Internal(f"channel {self.name} was admitted for token expansion but does not support it")
        return self.token_expandable

    def required_anchor_scores(self) -> CurRetriever:
        """The stored cross-encoder scores; Internal if there are none, since plans that need them are refused."""
        if self.anchor_scores is None:
            raise Internal(f"channel {self.name} was admitted for cur but stores no cross-encoder scores")
        return self.anchor_scores


def opened_channels(collection: CollectionView) -> dict[str, SearchChannel]:
    """The channels of the collection by name, each with its capabilities."""
    return {name: _opened(channel) for name, channel in collection.channels.items()}


def _opened(channel: ChannelView) -> SearchChannel:
    retriever = channel.retriever
    return SearchChannel(
        name=channel.name,
        kind=channel.family.kind,
        retriever=retriever,
        rescorer=retriever if isinstance(retriever, Rescorer) else None,
        expandable=retriever if isinstance(retriever, Expandable) else None,
        token_expandable=retriever if isinstance(retriever, TokenExpandable) else None,
        text_encoder=retriever if isinstance(retriever, TextQueryEncoder) else None,
        anchor_scores=retriever if isinstance(retriever, CurRetriever) else None,
    )
