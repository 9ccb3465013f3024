"""The jobs by name, and one run of a recipe from data to a finished folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from chamfer.core.errors import InvalidInput
from chamfer.models.training.data.groups import Group, check_groups, read_documents
from chamfer.models.training.jobs.clicks import ClicksRecipe, ClicksStudent
from chamfer.models.training.jobs.compress import CompressRecipe, CompressStudent
from chamfer.models.training.jobs.cross_encoder import CrossEncoderRecipe, CrossEncoderStudent
from chamfer.models.training.jobs.dense import DenseRecipe, DenseStudent
from chamfer.models.training.jobs.multivector import MultivectorRecipe, MultivectorStudent
from chamfer.models.training.jobs.reranker import RerankerLearner, RerankerRecipe
from chamfer.models.training.jobs.sparse import SparseRecipe, SparseStudent
from chamfer.models.training.jobs.universal import UniversalLearner, UniversalRecipe
from chamfer.models.training.loop.feature_cache import stored_states
from chamfer.models.training.loop.recipe import Recipe
from chamfer.models.training.loop.report import write_report
from chamfer.models.training.loop.student import Draws, Learner
from chamfer.models.training.loop.trainer import Fitted, arguments_of, fit, seed_everything, steps_of
from chamfer.models.training.loop.work_directory import claim

JOBS: dict[str, tuple[type[Recipe], Callable[[Any], Learner]]] = {
    "clicks": (ClicksRecipe, ClicksStudent),
    "compress": (CompressRecipe, CompressStudent),
    "cross_encoder": (CrossEncoderRecipe, CrossEncoderStudent),
    "dense": (DenseRecipe, DenseStudent),
    "multivector": (MultivectorRecipe, MultivectorStudent),
    "reranker": (RerankerRecipe, RerankerLearner),
    "sparse": (SparseRecipe, SparseStudent),
    "universal": (UniversalRecipe, UniversalLearner),
}


def recipe_type(job: str) -> type[Recipe]:
    """The dataclass of a job's recipe; InvalidInput names the jobs there are."""
    if job not in JOBS:
        raise InvalidInput(f"unknown job {job!r}; jobs: {', '.join(sorted(JOBS))}")
    return JOBS[job][0]


def run(recipe: Recipe, work: Path, progress: Callable[[int, int, float], None] | None = None) -> Fitted:
    """Trains what the recipe says and writes the model to recipe.out with its report; `work` keeps checkpoints.

    InvalidInput where `work` holds those of another run.
    """
    seed_everything(recipe.fit.seed)
    student = JOBS[recipe.job][1](recipe)
    if recipe.start is not None:
        student.begin(recipe.start)
    documents = read_documents(recipe.data.documents)
    groups = student.groups(lambda sources, splits: chosen(sources, splits, recipe))
    check_groups(groups, documents, needs_positive=student.needs_positive)
    training = [group for group in groups if group.split == "train"]
    if not training:
        raise InvalidInput(f"{recipe.data.groups} holds no training group of the shares {recipe.data.shares}")
    held_out = [
        (cut(group, recipe.data.held_out_depth), documents)
        for group in groups
        if group.split == "dev" and group.positives
    ]
    draws = Draws(training, documents, recipe.data, student.teachers, recipe.fit.seed, student.places)
    if recipe.data.states is not None:
        if not isinstance(student, MultivectorStudent | SparseStudent):
            raise InvalidInput(f"job {recipe.job} cannot learn from stored states; leave data.states out")
        student.read.store(stored_states(recipe.data.states, documents, {g.query_id: g.query for g in groups}))
    claim(work, recipe, groups, documents)
    arguments = arguments_of(recipe.fit, len(draws), work)
    student.prepare(documents.values(), steps_of(arguments, len(draws)))
    fitted = fit(student, draws, held_out, arguments, progress)
    if arguments.process_index == 0:
        student.save(recipe.out)
        write_report(recipe.out, recipe, fitted, len(training), student.facts)
    return fitted


def chosen(sources: Sequence[str], splits: Sequence[str], recipe: Recipe) -> list[int]:
    """Rows, ascending: the training groups that shares and limit leave, drawn by the seed, and the held-out ones.

    The held-out ones are the same for every seed; sources with share 0 give none.
    """
    data, rng = recipe.data, np.random.default_rng(recipe.fit.seed)
    shares = np.array([data.shares.get(source, 1.0) for source in sources])
    training = np.array(splits) == "train"
    taken = np.flatnonzero(training & (rng.random(len(shares)) < shares))
    if 0 < data.limit < len(taken):
        taken = rng.permutation(taken)[: data.limit]
    held = np.flatnonzero((np.array(splits) == "dev") & (shares > 0))
    held = np.random.default_rng(0).permutation(held)[: data.held_out]
    return sorted(int(row) for row in (*taken, *held))


def cut(group: Group, depth: int) -> Group:
    """The first `depth` candidates of a group; a positive beyond takes the last place."""
    places = list(range(min(depth, len(group.doc_ids))))
    if not any(place in places for place in group.positives):
        places[-1] = group.positives[0]
    return group.take(places)
