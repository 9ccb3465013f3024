"""Chamfer from Python, without a server: build, open, search. The service runs the same pipeline."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace as with_changes
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from chamfer.core.errors import ChamferError, InvalidInput
from chamfer.core.protocols import Encoder, Reranker
from chamfer.core.types import Document, Hit, Query, VectorKind
from chamfer.indexing.build.builder import BuildReport, BuildRun, Progress
from chamfer.indexing.build.builder import build as build_collection
from chamfer.indexing.build.corpus import Rejects, count_lines, read_corpus
from chamfer.indexing.collection.collection import Collection
from chamfer.indexing.collection.filters import parse_condition
from chamfer.indexing.collection.snapshot import open_snapshot
from chamfer.indexing.families.family import Family
from chamfer.models.backends.config import decide
from chamfer.models.registry import load_encoder, load_reranker
from chamfer.service.runtime.collection_server import PipelineLoader
from chamfer.service.search.pipeline import Pipeline
from chamfer.service.search.plans import DEFAULT_PRESET, Plan
from chamfer.service.search.request import SearchRequest, SearchResult
from chamfer.settings import Settings, load_settings


class Searcher:
    """An opened collection with its models. Close it, or use it as a context."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline

    @property
    def collection(self) -> Collection:
        opened = self.pipeline.collection
        assert isinstance(opened, Collection)
        return opened

    def __len__(self) -> int:
        """Live documents."""
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
        """The k best hits. `plan` is a preset, a configured name, or a plan; `filter` as in the REST request."""
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
        """One result a query, with timings; the queries are encoded in one batch. Raises the first error met.

        `pool` hands over the first so many candidates with the ranks and scores of every stage, as arrays.
        """
        if k < 1:
            raise InvalidInput(f"k is {k}, expected at least 1")
        asked = plan if isinstance(plan, str | Plan) else parse_plan(plan)
        condition = None if filter is None else parse_condition(filter)
        requests = [
            SearchRequest(query=q, k=k, plan=asked, filter=condition, explain=explain, pool=pool) for q in queries
        ]
        results: list[SearchResult] = []
        for outcome in self.pipeline.run(requests):
            if isinstance(outcome, ChamferError):
                raise outcome
            results.append(outcome)
        return results

    def close(self) -> None:
        self.pipeline.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def build(
    corpus: str | Path | Iterable[Document],
    out: str | Path,
    *,
    settings: Settings | None = None,
    config: Path | None = None,
    on_error: Literal["stop", "skip"] = "stop",
    replace: bool = False,
    progress: Progress | None = None,
    queries: Sequence[Query] = (),
) -> Searcher:
    """Builds a collection at `out` and opens it. `corpus` is what `chamfer build` takes, or documents.

    `queries` are for the recall floor (chamfer.indexing.build.recall_floor) and, as anchor queries, for family `cur`;
    without them they are made up from the documents.
    """
    chosen = settings or load_settings(config)
    run = BuildRun(progress=progress, queries=queries)
    _build(corpus, Path(out), chosen, run, on_error=on_error, rejects=None, replace=replace)
    return open(out, settings=chosen)


def build_report(
    corpus: str,
    out: Path,
    *,
    config: Path | None,
    overrides: Mapping[str, str],
    on_error: Literal["stop", "skip"],
    rejects: Rejects,
    replace: bool,
    run: BuildRun,
) -> BuildReport:
    """What the command line does: settings with a few overridden, and the report instead of a searcher."""
    settings = load_settings(config, overrides=overrides)
    return _build(corpus, out, settings, run, on_error=on_error, rejects=rejects, replace=replace)


def open(path: str | Path, *, settings: Settings | None = None, config: Path | None = None) -> Searcher:
    """Opens the collection at `path` with the encoder it was built with, ready to search."""
    chosen = settings or load_settings(config)
    return Searcher(pipeline_loader(chosen)(Path(path)))


def encoder_of(path: Path, *, config: Path | None = None) -> Encoder | None:
    """The encoder that the collection at `path` was built with; None if it has none."""
    name = open_snapshot(path).encoder_name
    return None if name is None else load_encoder(name, load_settings(config).models.device)


def kept_reranker(families: Mapping[str, Family], settings: Settings) -> Reranker | None:
    """The reranker whose scores a channel of family `cur` keeps; None without such a channel, or without a name."""
    name = next((f.config.reranker for f in families.values() if f.kind is VectorKind.ANCHORS), "")
    return reranker_of(settings, name) if name else None


def pipeline_loader(settings: Settings) -> PipelineLoader:
    """What opens collections under these settings; models are loaded once."""
    return PipelineLoader(
        settings.models.device,
        rerankers=settings.models.rerankers,
        plans=settings.plans,
        load_reranker=partial(reranker_of, settings),
        score_cache_bytes=settings.service.reranking.score_cache_bytes,
    )


def reranker_of(settings: Settings, name: str) -> Reranker:
    """The reranker of this name under these settings (chamfer.models.registry.load_reranker)."""
    models = settings.models
    return load_reranker(name, models.reranker_device, models.remotes, models.device)


def parse_plan(value: Mapping[str, Any]) -> Plan:
    """A plan from its JSON form; InvalidInput names the first place that does not fit."""
    from pydantic import ValidationError

    try:
        return Plan.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = "/".join(str(part) for part in first["loc"])
        raise InvalidInput(f"plan/{place}: {first['msg']}") from error


def _build(
    corpus: str | Path | Iterable[Document],
    out: Path,
    settings: Settings,
    run: BuildRun,
    *,
    on_error: Literal["stop", "skip"],
    rejects: Rejects | None,
    replace: bool,
) -> BuildReport:
    documents: Iterable[Document]
    if isinstance(corpus, str | Path):
        run = with_changes(run, total=count_lines(str(corpus)))
        documents = read_corpus(str(corpus), on_error=on_error, rejects=rejects)
    else:
        documents = corpus
    families = settings.build.families()
    run = with_changes(run, reranker=kept_reranker(families, settings))
    encoder = None
    if any(family.kind not in (None, VectorKind.ANCHORS) for family in families.values()):
        encoder = load_encoder(settings.models.encoder, settings.models.device)
        run = with_changes(run, device=decide(settings.models.device).device)
    return build_collection(documents, out, encoder=encoder, config=settings.build, replace=replace, run=run)
