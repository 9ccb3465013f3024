"""The jobs by name, and a run of a recipe from data to a finished model."""

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
from chamfer.models.training.loop.draws import Draws
from chamfer.models.training.loop.learner import Learner
from chamfer.models.training.loop.recipe import Recipe
from chamfer.models.training.loop.report import write_report
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
    """The dataclass of a job's recipe. InvalidInput, listing the jobs, for an unknown one."""
    if job not in JOBS:
        raise InvalidInput(f"unknown job {job!r}; jobs: {', '.join(sorted(JOBS))}")
    return JOBS[job][0]


def run(recipe: Recipe, work: Path, progress: Callable[[int, int, float], None] | None = None) -> Fitted:
    """Trains a recipe and writes the model to recipe.out with its report; `work` keeps the checkpoints.

    Resumes an interrupted run of the same recipe and data. InvalidInput if `work` belongs to another run, or if recipe
    and data do not fit together.
    """
    seed_everything(recipe.fit.seed)
    learner = JOBS[recipe.job][1](recipe)
    if recipe.init_from is not None:
        learner.load_start(recipe.init_from)
    documents = read_documents(recipe.data.documents)
    groups = learner.groups(lambda sources, splits: select_rows(sources, splits, recipe))
    check_groups(groups, documents, needs_positive=learner.needs_positive)
    training = [group for group in groups if group.split == "train"]
    if not training:
        raise InvalidInput(
            f"{recipe.data.groups} holds no training group with data.source_fractions = {recipe.data.source_fractions}"
        )
    eval_groups = [
        (shortened(group, recipe.data.eval_depth), documents)
        for group in groups
        if group.split == "dev" and group.positives
    ]
    draws = Draws(training, documents, recipe.data, learner.teachers, recipe.fit.seed, learner.sample)
    if recipe.data.token_vectors is not None:
        queries = {group.query_id: group.query for group in groups}
        learner.use_token_vectors(recipe.data.token_vectors, documents, queries)
    claim(work, recipe, groups, documents)
    arguments = arguments_of(recipe.fit, len(draws), work)
    learner.prepare(documents.values(), steps_of(arguments, len(draws)))
    fitted = fit(learner, draws, eval_groups, arguments, progress)
    if arguments.process_index == 0:
        learner.save(recipe.out)
        write_report(recipe.out, recipe, fitted, len(training), learner.facts)
    return fitted


def select_rows(sources: Sequence[str], splits: Sequence[str], recipe: Recipe) -> list[int]:
    """Rows, ascending: the training groups that source_fractions and max_train_groups leave, and those for evaluation.

    Training groups are drawn by the seed; the evaluation groups are the same for every seed.
    """
    data, rng = recipe.data, np.random.default_rng(recipe.fit.seed)
    fractions = np.array([data.source_fractions.get(source, 1.0) for source in sources])
    training = np.array(splits) == "train"
    selected = np.flatnonzero(training & (rng.random(len(fractions)) < fractions))
    if 0 < data.max_train_groups < len(selected):
        selected = rng.permutation(selected)[: data.max_train_groups]
    evaluation = np.flatnonzero((np.array(splits) == "dev") & (fractions > 0))
    evaluation = np.random.default_rng(0).permutation(evaluation)[: data.max_eval_groups]
    return sorted(int(row) for row in (*selected, *evaluation))


def shortened(group: Group, depth: int) -> Group:
    """The first `depth` candidates of a group; if none is relevant, the first positive replaces the last of them."""
    candidates = list(range(min(depth, len(group.doc_ids))))
    if not any(index in candidates for index in group.positives):
        candidates[-1] = group.positives[0]
    return group.take(candidates)
