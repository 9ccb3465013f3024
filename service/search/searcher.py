"""Searching from Python: one opened collection behind plain function calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from chamfer.core.errors import ChamferError, InvalidInput
from chamfer.core.types import Hit
from chamfer.indexing.collection.collection import Collection
from chamfer.indexing.collection.filters import parse_condition
from chamfer.service.search.pipeline import Pipeline
from chamfer.service.search.plans import Plan, parse_plan
from chamfer.service.search.presets import DEFAULT_PRESET
from chamfer.service.search.request import SearchRequest, SearchResult


class Searcher:
    """An opened collection with its models. Close it, or use it as a context manager."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline

    @property
    def collection(self) -> Collection:
        opened = self.pipeline.collection
        assert isinstance(opened, Collection)
        return opened

    def __len__(self) -> int:
        """The number of live documents."""
        return len(self.pipeline.collection)

    def search(
        self,
        query: str,
        k: int = 10,
        *,
        plan: str | Plan | Mapping[str, Any] = DEFAULT_PRESET,
        filter: Mapping[str, Any] | None = None,
        explain: bool = False,
    ) -> list[Hit]:
        """The k best hits. `plan` is a preset, the name of a configured plan, or a plan; `filter` as in the REST API.

        Raises InvalidInput for a k below 1, an unknown plan, or a plan or filter that is invalid.
        """
        return list(self.search_many([query], k, plan=plan, filter=filter, explain=explain)[0].hits)

    def search_many(
        self,
        queries: Sequence[str],
        k: int = 10,
        *,
        plan: str | Plan | Mapping[str, Any] = DEFAULT_PRESET,
        filter: Mapping[str, Any] | None = None,
        explain: bool = False,
        pool: int = 0,
    ) -> list[SearchResult]:
        """One result for each query, with timings; all queries are encoded in one batch. Raises the first error.

        `pool` is the number of candidates to return with their ranks and scores in every stage, as arrays.
        """
        if k < 1:
            raise InvalidInput(f"k is {k}, expected at least 1")
        parsed_plan = plan if isinstance(plan, str | Plan) else parse_plan(plan)
        condition = None if filter is None else parse_condition(filter)
        requests = [
            SearchRequest(query=query, k=k, plan=parsed_plan, filter=condition, explain=explain, pool=pool)
            for query in queries
        ]
        results: list[SearchResult] = []
        for result in self.pipeline.run(requests):
            if isinstance(result, ChamferError):
                raise result
            results.append(result)
        return results

    def close(self) -> None:
        """Closes the collection."""
        self.pipeline.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
