"""The jobs by name, and one run of a recipe from data to a finished folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from chamfer.errors import InvalidInput
from models.trained import save
from models.training.cross_encoder import CrossEncoderRecipe, CrossEncoderStudent
from models.training.dense import DenseRecipe, DenseStudent
from models.training.fit import Fitted, fit, seed_everything
from models.training.groups import Group, check_groups, read_documents, read_groups
from models.training.multivector import MultivectorRecipe, MultivectorStudent
from models.training.recipe import Recipe
from models.training.report import write_report
from models.training.sparse import SparseRecipe, SparseStudent
from models.training.student import Draws, Student

JOBS: dict[str, tuple[type[Recipe], Callable[[Any], Student]]] = {
    "cross_encoder": (CrossEncoderRecipe, CrossEncoderStudent),
    "dense": (DenseRecipe, DenseStudent),
    "multivector": (MultivectorRecipe, MultivectorStudent),
    "sparse": (SparseRecipe, SparseStudent),
}


def recipe_type(job: str) -> type[Recipe]:
    """The dataclass of a job's recipe; InvalidInput names the jobs there are."""
    if job not in JOBS:
        raise InvalidInput(f"unknown job {job!r}; jobs: {', '.join(sorted(JOBS))}")
    return JOBS[job][0]


def run(recipe: Recipe, work: Path, progress: Callable[[int, int, float], None] | None = None) -> Fitted:
    """Trains what the recipe says and writes the model to recipe.out with its report; `work` keeps checkpoints."""
    seed_everything(recipe.fit.seed)
    student = JOBS[recipe.job][1](recipe)
    documents = read_documents(recipe.data.documents)
    groups = read_groups(recipe.data.groups)
    check_groups(groups, documents)
    training = chosen(groups, recipe)
    if not training:
        raise InvalidInput(f"{recipe.data.groups} holds no training group of the shares {recipe.data.shares}")
    held_out = [(group, documents) for group in _held_out(groups, recipe)]
    draws = Draws(training, documents, recipe.data, student.teachers, recipe.fit.seed)
    student.prepare(documents.values(), len(draws) // (recipe.fit.batch * recipe.fit.accumulate))
    fitted = fit(student, draws, held_out, work, progress)
    save(recipe.out, student.description(), dict(student.head.state_dict()), student.adapter())
    write_report(recipe.out, recipe, fitted, len(training))
    return fitted


def chosen(groups: list[Group], recipe: Recipe) -> list[Group]:
    """The training groups that the recipe's shares and limit leave, drawn by its seed."""
    rng = np.random.default_rng(recipe.fit.seed)
    taken = [
        group
        for group, place in zip(groups, rng.random(len(groups)), strict=True)
        if group.split == "train" and place < recipe.data.shares.get(group.source, 1.0)
    ]
    if 0 < recipe.data.limit < len(taken):
        return [taken[int(place)] for place in sorted(rng.permutation(len(taken))[: recipe.data.limit])]
    return taken


def _held_out(groups: list[Group], recipe: Recipe) -> list[Group]:
    """At most `data.held_out` groups of the dev split, each cut to its first `data.held_out_depth` candidates."""
    held = [group for group in groups if group.split == "dev"]
    order = np.random.default_rng(0).permutation(len(held))[: recipe.data.held_out]
    return [cut(held[int(place)], recipe.data.held_out_depth) for place in sorted(order)]


def cut(group: Group, depth: int) -> Group:
    """The first `depth` candidates of a group; a positive beyond takes the last place."""
    places = list(range(min(depth, len(group.doc_ids))))
    if not any(place in places for place in group.positives):
        places[-1] = group.positives[0]
    return Group(
        query_id=group.query_id,
        query=group.query,
        doc_ids=[group.doc_ids[place] for place in places],
        labels=[group.labels[place] for place in places],
        source=group.source,
        split=group.split,
    )
