"""The Python interface: build a collection, open it, search it. The HTTP service runs the same pipeline."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace as with_changes
from functools import partial
from pathlib import Path
from typing import Literal

from chamfer.core.protocols import Encoder, Reranker
from chamfer.core.types import Document, Query, VectorKind
from chamfer.indexing.building.builder import BuildReport, BuildRun, Progress
from chamfer.indexing.building.builder import build as build_collection
from chamfer.indexing.building.corpus import Rejects, count_lines, read_corpus
from chamfer.indexing.collection.snapshot import open_snapshot
from chamfer.indexing.families.family import Family
from chamfer.models.backends.config import decide
from chamfer.models.registry import load_encoder, load_reranker
from chamfer.service.runtime.pipeline_loader import PipelineLoader
from chamfer.service.search.searcher import Searcher
from chamfer.settings import Settings, load_settings


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
    """Builds a collection at `out` and opens it. `corpus` is a corpus as `chamfer build` takes it, or documents.

    `queries` are used to check the recall floor (chamfer.indexing.building.recall_floor) and as anchor queries of
    family `cur`. Without them, queries are generated from the documents.
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
    """Builds as `build` does, with settings overridden one by one, and returns the report instead of a searcher."""
    settings = load_settings(config, overrides=overrides)
    return _build(corpus, out, settings, run, on_error=on_error, rejects=rejects, replace=replace)


def open(path: str | Path, *, settings: Settings | None = None, config: Path | None = None) -> Searcher:
    """Opens the collection at `path` with the encoder that it was built with, ready to search.

    Raises NotFound, Corrupt, or Incompatible if the encoder differs from the one that built the collection.
    """
    chosen = settings or load_settings(config)
    return Searcher(pipeline_loader(chosen)(Path(path)))


def encoder_of(path: Path, *, config: Path | None = None) -> Encoder | None:
    """The encoder that the collection at `path` was built with; None if it was built without one."""
    name = open_snapshot(path).encoder_name
    return None if name is None else load_encoder(name, load_settings(config).models.device)


def kept_reranker(families: Mapping[str, Family], settings: Settings) -> Reranker | None:
    """The reranker whose scores a channel of family `cur` stores; None without such a channel or reranker name."""
    name = next((f.config.reranker for f in families.values() if f.kind is VectorKind.ANCHORS), "")
    return reranker_of(settings, name) if name else None


def pipeline_loader(settings: Settings) -> PipelineLoader:
    """Opens collections under these settings; each model is loaded once."""
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
