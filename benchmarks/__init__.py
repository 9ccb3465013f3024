"""Programs that measure one subject each. They print rows; with --json, a list of {what, value, unit, peer, ratio}.

Those in this package guard the product: a change that makes it slower, larger or less accurate shows here. Those in
benchmarks.research settled a decision once and are kept so that it can be checked.
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
