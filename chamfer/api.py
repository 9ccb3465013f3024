"""Chamfer from Python, without a server: build, open, search. The service runs the same pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from service.pipeline import Pipeline, SearchRequest, SearchResult
from service.plans import Plan

from chamfer.errors import ChamferError
from chamfer.types import Hit, Query
from indexing.collection import Collection


class Searcher:
    """An opened collection with its models. Close it, or use it as a context."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline

    @property
    def collection(self) -> Collection:
        return self.pipeline.collection

    def __len__(self) -> int:
        """Live documents."""
        return len(self.collection)

    def search(
        self,
        query: str | Query,
        k: int = 10,
        *,
        plan: str | Plan | None = None,
        filter: Mapping[str, Any] | None = None,  # the wire's word
        explain: bool = False,
    ) -> list[Hit]:
        """The k best hits. `plan` is a preset, a configured name or a Plan; `filter` as in the REST request."""
        return list(self.search_many([query], k, plan=plan, filter=filter, explain=explain)[0].hits)

    def search_many(
        self,
        queries: Sequence[str | Query],
        k: int = 10,
        *,
        plan: str | Plan | None = None,
        filter: Mapping[str, Any] | None = None,
        explain: bool = False,
    ) -> list[SearchResult]:
        """One result a query, with timings; the queries are encoded in one batch. Raises the first error met."""
        requests = [
            SearchRequest(query=as_query(query), k=k, plan=plan, filter=filter, explain=explain) for query in queries
        ]
        results: list[SearchResult] = []
        for outcome in self.pipeline.run(requests):
            if isinstance(outcome, ChamferError):
                raise outcome
            results.append(outcome)
        return results

    def close(self) -> None:
        self.collection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def as_query(query: str | Query) -> Query:
    """A bare text as a Query."""
    return query if isinstance(query, Query) else Query("", query)
