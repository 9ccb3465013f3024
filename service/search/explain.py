"""What each stage did to a document: explanations of single hits, and the same as columns over a pool of candidates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from chamfer.core.types import F32, I64, Candidates
from chamfer.service.search.fusion import ChannelShare, Fused
from chamfer.service.search.in_flight import Expansion, InFlightSearch, StageScores


def explanation(search: InFlightSearch, row: int, doc_ids: Mapping[int, str]) -> dict[str, Any]:
    """The stages that a hit went through, in order: its rank and score in each, and the arithmetic of the fusion.

    A stage that did not see the document has rank and score None. `doc_ids` gives the ids of feedback documents by row.
    """
    stages = _explain_round(search, row, search.runs, search.fused, "fuse")
    stages += [_explain_feedback(name, search.expansions[name], row, doc_ids) for name in _expanded_channels(search)]
    if search.feedback_runs:
        stages += _explain_round(search, row, search.runs_after_feedback, search.feedback_fused, "fuse_again")
    for scores in search.stage_scores:
        stages.append(_explain_scores(scores, row))
    return {"stages": stages}


def pool_features(search: InFlightSearch, rows: I64) -> dict[str, F32]:
    """The content of `explanation` for rows i64 [n], as columns f32 [n]: rank and score in CHANNEL, in CHANNEL.again
    (after feedback) and in each STAGE. NaN where a stage did not see the row; columns of nothing else are left out.
    """
    columns: dict[str, F32] = {}
    for name, ranks, scores in _stage_columns(search, rows):
        for column, values in ((f"{name}.rank", ranks), (f"{name}.score", scores)):
            seen = ~np.isnan(values)
            if seen.any():
                merged = columns.setdefault(column, np.full(len(rows), np.nan, dtype=np.float32))
                merged[seen] = values[seen]
    return columns


def _expanded_channels(search: InFlightSearch) -> list[str]:
    feedback = search.plan.plan.feedback
    return [name for name in (feedback.channels if feedback else ()) if name in search.expansions]


def _stage_columns(search: InFlightSearch, rows: I64) -> Iterator[tuple[str, F32, F32]]:
    """(name, ranks f32 [n], scores f32 [n]) of every stage, in order; NaN where it did not see the row."""
    no_scores = np.full(len(rows), np.nan, dtype=np.float32)
    yield from _round_columns(search, rows, search.runs, search.fused, "fuse")
    for name in _expanded_channels(search):
        yield "feedback", _ranks(_positions(search.expansions[name].rows, rows)), no_scores
    if search.feedback_runs:
        yield from _round_columns(search, rows, search.runs_after_feedback, search.feedback_fused, "fuse_again")
    for scores in search.stage_scores:
        ranks = _ranks(_positions(scores.ranked.rows[0], rows))
        yield scores.stage, ranks, _values_at(_positions(scores.rows, rows), scores.scores)


def _round_columns(
    search: InFlightSearch, rows: I64, runs: Mapping[str, Candidates], fused: Fused | None, fusion_stage: str
) -> Iterator[tuple[str, F32, F32]]:
    labels = {n: f"{n}.again" if run is search.feedback_runs.get(n) else n for n, run in runs.items()}
    if fused is None:
        for name, run in runs.items():
            positions = _positions(run.rows[0], rows)
            yield labels[name], _ranks(positions), _values_at(positions, run.scores[0])
        return
    positions = _positions(fused.candidates.rows[0], rows)
    for name, share in fused.channels.items():
        ranks = _values_at(positions, share.ranks[0].astype(np.float32))
        retrieved = ranks > 0
        scores = _values_at(positions, share.scores[0])
        yield labels[name], np.where(retrieved, ranks, np.nan), np.where(retrieved, scores, np.nan)
    yield fusion_stage, _ranks(positions), _values_at(positions, fused.candidates.scores[0])


def _positions(order: I64, rows: I64) -> I64:
    """The first position of each of rows i64 [n] in `order` i64 [K], -1 where it does not occur."""
    if not len(order):
        return np.full(len(rows), -1, dtype=np.int64)
    sorter = np.argsort(order, kind="stable")
    nearest = sorter[np.minimum(np.searchsorted(order, rows, sorter=sorter), len(order) - 1)]
    return np.where(order[nearest] == rows, nearest, -1)


def _ranks(positions: I64) -> F32:
    """Positions i64 [n] as ranks from 1, f32 [n]; NaN at -1."""
    return np.where(positions >= 0, positions + 1.0, np.nan).astype(np.float32)


def _values_at(positions: I64, values: F32) -> F32:
    """values f32 [K] at positions i64 [n]; NaN at -1."""
    if not len(values):  # a stage that the deadline cut before its first score
        return np.full(len(positions), np.nan, dtype=np.float32)
    return np.where(positions >= 0, values[positions], np.nan).astype(np.float32)


def _explain_scores(scores: StageScores, row: int) -> dict[str, Any]:
    """A scoring stage for one row; where the stage predicted a score first, the estimate is shown beside the score."""
    position = _position(scores.rows, row)
    rank_position = _position(scores.ranked.rows[0], row)
    entry: dict[str, Any] = {
        "stage": scores.stage,
        "name": scores.name,
        "rank": None if rank_position is None else rank_position + 1,
        "score": None if position is None else float(scores.scores[position]),
    }
    if scores.estimates is not None:
        estimate = None if position is None else float(scores.estimates[position])
        entry["estimate"] = None if estimate is None or estimate != estimate else estimate
    return entry


def _explain_feedback(name: str, expansion: Expansion, row: int, doc_ids: Mapping[int, str]) -> dict[str, Any]:
    """The feedback of a channel; `rank` is the rank of the hit among the feedback documents."""
    position = _position(expansion.rows, row)
    return {
        "stage": "feedback",
        "name": name,
        "rank": None if position is None else position + 1,
        "score": None,
        "skipped": expansion.vectors is None,
        **expansion.details,
        "documents": [doc_ids[each] for each in expansion.rows.tolist()],
    }


def _explain_round(
    search: InFlightSearch, row: int, runs: Mapping[str, Candidates], fused: Fused | None, fusion_stage: str
) -> list[dict[str, Any]]:
    stages = {
        name: "retrieve_again" if run is search.feedback_runs.get(name) else "retrieve" for name, run in runs.items()
    }
    if fused is None:  # a single channel, nothing was fused
        [(name, run)] = runs.items()
        entry: dict[str, Any] = {"stage": stages[name], "name": name, "rank": None, "score": None}
        if (position := _position(run.rows[0], row)) is not None:
            entry |= {"rank": position + 1, "score": float(run.scores[0, position])}
        return [entry]
    position = _position(fused.candidates.rows[0], row)
    channels = [_explain_share(stages[name], name, share, position) for name, share in fused.channels.items()]
    fusion: dict[str, Any] = {
        "stage": fusion_stage,
        "name": search.plan.plan.fusion.method,
        "rank": None,
        "score": None,
    }
    if position is not None:
        fusion |= {"rank": position + 1, "score": float(fused.candidates.scores[0, position])}
    return [*channels, fusion]


def _explain_share(stage: str, name: str, share: ChannelShare, position: int | None) -> dict[str, Any]:
    """What a channel contributed to the fused candidate at `position`; without one there is no arithmetic to show."""
    entry: dict[str, Any] = {"stage": stage, "name": name, "rank": None, "score": None}
    if position is not None:
        rank = int(share.ranks[0, position])
        entry |= {"rank": rank or None, "score": float(share.scores[0, position]) if rank else None}
        entry |= {
            "value": float(share.values[0, position]),
            "weight": share.weight,
            "share": float(share.shares[0, position]),
        }
    return entry


def _position(rows: I64, row: int) -> int | None:
    positions = (rows == row).nonzero()[0]
    return int(positions[0]) if len(positions) else None
