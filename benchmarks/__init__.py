"""Benchmark programs, one per subject. Each prints a table; with --json, a list of {what, value, unit, peer, ratio}.

The programs in this package guard the product: they show when a change makes it slower, larger or less accurate. Those
in benchmarks.research each settled one decision and remain so that it can be checked again.
"""

from __future__ import annotations

GUARDS = (
    "encoder",
    "exact",
    "lexical",
    "sparse",
    "multivector",
    "candidates",
    "late",
    "growth",
    "gpu",
    "cur",
    "cur_index",
    "rerank",
    "mining",
    "http",
    "quality",
)
RESEARCH = ("feedback", "cet_simulation", "cet_real", "mini_models")
SUBJECTS = (*GUARDS, *RESEARCH)


def module_of(subject: str) -> str:
    """The module that `python -m` runs for a subject."""
    return f"benchmarks.research.{subject}" if subject in RESEARCH else f"benchmarks.{subject}"
