"""Every job: it overfits eight examples, its folder opens as a model, and a resumed run equals an uninterrupted one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from support_training import Recipes

from chamfer.core.analysis import term_hashes
from chamfer.core.errors import InvalidInput, NotFound
from chamfer.core.types import Document, Query, VectorKind
from chamfer.models.backends.config import DeviceConfig
from chamfer.models.networks.checkpoint import WEIGHTS
from chamfer.models.registry import load_encoder, load_reranker
from chamfer.models.training.data.groups import read_groups, write_groups
from chamfer.models.training.jobs.registry import JOBS as STUDENTS
from chamfer.models.training.jobs.registry import run
from chamfer.models.training.jobs.selection_bias import CetConfig
from chamfer.models.training.loop.recipe import AdapterConfig, DataConfig, FitConfig
from chamfer.settings import load_recipe

ROOT = Path(__file__).resolve().parents[4]

FP32 = DeviceConfig(precision="fp32", device="cpu")
ADAPTER = {"rank": 4, "alpha": 8}
LARGER = {"rank": 8, "alpha": 16}
JOBS: dict[str, dict[str, Any]] = {
    "cross_encoder": {"tables": {"adapter": ADAPTER}},
    "clicks propensity": {"tables": {"adapter": ADAPTER}},
    "clicks noise": {"click_loss": "noise", "tables": {"adapter": ADAPTER}},
    "cross_encoder released": {
        "loss": "pairwise",
        "tables": {"adapter": ADAPTER, "cet": {"selection_model": "released", "temperature": 5.0}},
    },
    "cross_encoder logged": {
        "loss": "pairwise",
        "tables": {
            "adapter": ADAPTER,
            "cet": {
                "selection_model": "logged",
                "weighting": "exact",
                "features": {"bm25": 10.0},
                "selected_column": "judged",
            },
        },
    },
    "multivector": {
        "poolings": ["", "c2x3"],
        "teachers": ["bm25", "dense"],
        "tables": {"head": {"dim": 16, "terms": True}},
    },
    "sparse": {"vocabulary_sample": 16, "teacher_scale": 10.0, "contrastive_weight": 1.0, "min_df": 1},
    "compress": {"keep_ratio": 0.5, "calibration_groups": 4, "temperature": 0.2},
    "reranker": {"list_weight": 0.1, "tables": {"adapter": LARGER, "fit": {"learning_rate": 1e-2}}},
    "universal": {
        "judge_column": "dense",
        "temperature": 0.1,
        "student_temperature": 0.2,
        "tables": {"adapter": LARGER, "fit": {"learning_rate": 1e-2}},
    },
    "dense": {"tables": {"adapter": ADAPTER}, "focal_gamma": 0.5, "mixed_pairs": 2, "mixed_list": True},
}
PARTS = {
    "cross_encoder": "part_listwise",
    "clicks propensity": "part_propensity",
    "clicks noise": "note_likelihood",
    "cross_encoder released": "part_pairwise",
    "cross_encoder logged": "part_pairwise",
    "reranker": "part_pair",
}
MULTIMODAL = ("reranker", "universal")


def with_fit(options: dict[str, Any], **fit: Any) -> dict[str, Any]:
    return {**options, "tables": {**options.get("tables", {}), "fit": fit}}


@pytest.mark.parametrize("job", JOBS)
def test_eight_examples_are_overfitted(job: str, recipe_of: Recipes, multimodal: Path) -> None:
    options = JOBS[job] | ({"backbone": str(multimodal)} if job in MULTIMODAL else {})
    epochs = {"multivector": 60, "reranker": 40}.get(job, 20)  # a head alone, on a frozen backbone, learns slower
    tables = options.get("tables", {})
    options["tables"] = {**tables, "data": {"epochs": epochs}, "fit": {**tables.get("fit", {}), "warmup_ratio": 0.0}}
    path = recipe_of(job.split()[0], **options)
    fitted = run(load_recipe(path), path.parent / "work")
    first, last = (fitted.curve[index] for index in (0, -1))
    part = PARTS.get(job, "part_contrastive")
    assert last[part] < 0.35 * first[part]


@pytest.mark.parametrize("job", JOBS)
def test_a_resumed_run_ends_with_the_bits_of_an_unbroken_one(
    job: str, recipe_of: Recipes, multimodal: Path, tmp_path: Path
) -> None:
    options = JOBS[job] | ({"backbone": str(multimodal)} if job in MULTIMODAL else {})
    options["tables"] = {**options.get("tables", {}), "data": {"epochs": 2}, "fit": {"save_steps": 2}}
    if "adapter" in options["tables"]:
        options["tables"]["adapter"] = {**ADAPTER, "dropout": 0.1}
    whole = load_recipe(recipe_of(job.split()[0], "whole", **options))
    run(whole, tmp_path / "whole.work")
    broken = load_recipe(recipe_of(job.split()[0], "broken", **options))

    class Stop(Exception):
        pass

    def stop(step: int, steps: int, loss: float) -> None:
        del steps, loss
        if step == 3:  # after the checkpoint of step 2
            raise Stop

    with pytest.raises(Stop):
        run(broken, tmp_path / "broken.work", stop)
    resumed = run(broken, tmp_path / "broken.work")
    assert resumed.resumed_at == 2
    expected, actual = load_file(whole.out / WEIGHTS), load_file(broken.out / WEIGHTS)
    assert expected.keys() == actual.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(tensor, actual[name], err_msg=name)


def test_a_work_directory_of_another_run_is_refused_with_what_differs(recipe_of: Recipes, tmp_path: Path) -> None:
    options, work = JOBS["cross_encoder"], tmp_path / "work"
    path = recipe_of("cross_encoder", **options)
    run(load_recipe(path, {"fit.max_steps": "1"}), work)
    assert run(load_recipe(path, {"fit.max_steps": "2", "fit.save_steps": "1"}), work).resumed_at == 1
    with pytest.raises(
        InvalidInput, match=r"work belongs to another run \(data.max_train_groups was 0, is 4; groups was"
    ):
        run(load_recipe(path, {"data.max_train_groups": "4"}), work)
    groups = read_groups(tmp_path / "groups.parquet")
    write_groups(tmp_path / "groups.parquet", [replace(group, query=group.query + " w1") for group in groups])
    with pytest.raises(InvalidInput, match="remove it, or give this run another --work"):
        run(load_recipe(path), work)


def test_max_steps_ends_a_run_early(recipe_of: Recipes, tmp_path: Path) -> None:
    options = {"tables": {"adapter": ADAPTER, "data": {"epochs": 3}, "fit": {"max_steps": 4}}}
    fitted = run(load_recipe(recipe_of("cross_encoder", **options)), tmp_path / "work")
    assert fitted.steps == 4
    assert fitted.curve[-1]["learning_rate"] > 0


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(recipe_of: Recipes, tmp_path: Path) -> None:
    weights = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        recipe = load_recipe(recipe_of("cross_encoder", name, **with_fit(JOBS["cross_encoder"], seed=seed)))
        run(recipe, tmp_path / f"{name}.work")
        weights.append(load_file(recipe.out / WEIGHTS)["head.outer.weight"])
    np.testing.assert_array_equal(weights[0], weights[1])
    assert not np.array_equal(weights[0], weights[2])


def test_a_trained_reranker_opens_by_its_folder_and_ranks_as_trained(recipe_of: Recipes, tmp_path: Path) -> None:
    options = {"tables": {"adapter": ADAPTER, "data": {"epochs": 10}}}
    recipe = load_recipe(recipe_of("cross_encoder", **options))
    run(recipe, tmp_path / "work")
    reranker = load_reranker(str(recipe.out), FP32)
    documents = [Document("0", "w1 w2 w3"), Document("1", ""), Document("2", "w9 w8 w7 w6 " * 20)]
    scores = reranker.score(Query("q", "w2 w1"), documents)
    assert scores.shape == (3,)
    assert np.argmax(scores) == 0
    np.testing.assert_array_equal(reranker.score(Query("q", "w2 w1"), documents[:1]), scores[:1])


def test_a_second_stage_starts_from_the_first_ones_weights_even_if_it_adapts_more_layers(
    recipe_of: Recipes, tmp_path: Path
) -> None:
    upper = {"adapter": {**ADAPTER, "first_layer": 1}, "data": {"epochs": 10}}
    first = load_recipe(recipe_of("cross_encoder", "first", tables=upper))
    run(first, tmp_path / "first.work")
    start = {"init_from": str(first.out)}
    second = load_recipe(recipe_of("cross_encoder", "second", **start, tables={"adapter": ADAPTER}))
    run(second, tmp_path / "second.work")
    reached, layers = (load_file(recipe.out / WEIGHTS) for recipe in (first, second))
    assert reached.keys() < layers.keys()
    student = STUDENTS["cross_encoder"][1](second)
    student.load_start(first.out)
    documents = ["w1 w2 w3", "w9 w8"]
    expected = load_reranker(str(first.out), FP32).score(Query("q", "w2 w1"), [Document(t, t) for t in documents])
    np.testing.assert_allclose(student.score("w2 w1", documents).detach().numpy(), expected, rtol=1e-3, atol=1e-3)
    narrow = load_recipe(recipe_of("cross_encoder", "third", **start, tables={"adapter": {"rank": 2, "alpha": 4}}))
    with pytest.raises(InvalidInput, match="init_from = "):
        run(narrow, tmp_path / "third.work")


def test_heads_over_one_frozen_backbone_give_all_kinds_in_one_pass(recipe_of: Recipes, tmp_path: Path) -> None:
    folders = []
    for job in ("multivector", "sparse"):
        recipe = load_recipe(recipe_of(job, job, **JOBS[job]))
        run(recipe, tmp_path / f"{job}.work")
        folders.append(str(recipe.out))
    encoder = load_encoder("trained:" + ",".join(folders), FP32)
    documents = [
        Document("0", "w1 w2 w3"),
        Document("1", "w5 w5 w9 w20 w21 w22 w23 w24 w25 w26 w27 w28 w29 w30 w31 w32"),
    ]
    kinds = (VectorKind.DENSE, VectorKind.TOKENS, VectorKind.SPARSE)
    encoding = encoder.encode_documents(documents, kinds)
    assert encoding.dense is not None
    assert encoding.tokens is not None
    assert encoding.sparse is not None
    assert encoding.tokens.values.shape == (5 + 18, 16)
    np.testing.assert_allclose(np.linalg.norm(encoding.dense.values, axis=1), 1, atol=1e-5)
    alone = encoder.encode_documents(documents[1:], kinds)
    assert alone.tokens is not None
    assert alone.sparse is not None
    np.testing.assert_array_equal(alone.tokens.values, encoding.tokens.values[5:])
    np.testing.assert_array_equal(alone.sparse.weights, encoding.sparse.take([1]).weights)
    query_weights = encoder.encode_queries([Query("q", "w2 w1 w2")], [VectorKind.SPARSE]).sparse
    assert query_weights is not None
    terms = load_file(f"{folders[1]}/{WEIGHTS}")
    weights = dict(zip(query_weights.terms.tolist(), query_weights.weights.tolist(), strict=True))
    for word, count in (("w1", 1), ("w2", 2)):
        number = int(np.searchsorted(terms["head.names"], term_hashes([word]).view(np.int64)[0]))
        assert weights.pop(number) == pytest.approx(count * float(terms["head.idf"][number]))
    assert not weights


def test_a_term_s_vector_is_the_mean_of_its_words_by_how_often_they_occur(recipe_of: Recipes) -> None:
    recipe = load_recipe(recipe_of("sparse", "sparse", **JOBS["sparse"]))
    student: Any = STUDENTS["sparse"][1](recipe)
    term_vectors = student._term_vectors([{"w1": 3, "w2": 1}, {"w5": 7}]).numpy()
    one, two, five = student._word_vectors(["w1", "w2", "w5"]).numpy()
    mean = 3 * one + two
    np.testing.assert_allclose(term_vectors, [mean / np.linalg.norm(mean), five], atol=1e-6)


def test_the_loaded_model_gives_the_scores_of_training(recipe_of: Recipes, tmp_path: Path) -> None:
    """Scores of the students and of the opened folders agree to half precision."""
    texts = ["w1 w2 w3", "w4 w1", "w7 w8 w9 w10"]
    documents = [Document(str(i), text) for i, text in enumerate(texts)]
    for job, kind in (("multivector", VectorKind.TOKENS), ("sparse", VectorKind.SPARSE), ("dense", VectorKind.DENSE)):
        recipe = load_recipe(recipe_of(job, job, **JOBS[job]))
        run(recipe, tmp_path / f"{job}.work")
        encoder = load_encoder(f"trained:{recipe.out}", FP32)
        d = encoder.encode_documents(documents, [kind]).vectors(kind)
        q = encoder.encode_queries([Query("q", "w2 w1")], [kind]).vectors(kind)
        student = _student_of(STUDENTS[job][1](recipe), recipe)
        expected = student.score("w2 w1", texts).detach().numpy()
        np.testing.assert_allclose(_scores(kind, q, d), expected, rtol=0.02, atol=0.02)


def test_the_loaded_model_gives_the_scores_of_training_with_weighted_pooling(
    recipe_of: Recipes, tmp_path: Path
) -> None:
    first = load_recipe(recipe_of("multivector", "first", **JOBS["multivector"]))
    run(first, tmp_path / "first.work")
    tables = {"head": {"dim": 16, "terms": True, "pooled_power": 2.0}, "fit": {"head_learning_rate": 0.05}}
    options = JOBS["multivector"] | {"poolings": ["w0x2"], "tables": tables}
    recipe = load_recipe(recipe_of("multivector", "second", init_from=str(first.out), **options))
    run(recipe, tmp_path / "second.work")
    assert np.abs(load_file(recipe.out / WEIGHTS)["head.count.weight"]).max() > 1e-3  # trained through the means alone
    texts = ["w1 w2 w3 w4 w5", "w4 w1", "w7 w8 w9 w10"]
    encoder = load_encoder(f"trained:{recipe.out}+w0x2", FP32)
    d = encoder.encode_documents([Document(text, text) for text in texts], [VectorKind.TOKENS]).tokens
    q = encoder.encode_queries([Query("q", "w2 w1")], [VectorKind.TOKENS]).tokens
    student: Any = STUDENTS["multivector"][1](recipe)
    student.load_start(recipe.out)
    expected = student.eval().score("w2 w1", texts).detach().numpy()
    np.testing.assert_allclose(_scores(VectorKind.TOKENS, q, d), expected, rtol=0.02, atol=0.02)


def test_wise_ft_interpolates_initial_and_trained_weights(recipe_of: Recipes, tmp_path: Path) -> None:
    options = {**JOBS["multivector"], "tables": {**JOBS["multivector"]["tables"], "adapter": ADAPTER}}
    folders = {}
    for share in (1.0, 0.25, 0.0):
        recipe = load_recipe(recipe_of("multivector", f"share{share}", wise_ft_alpha=share, **options))
        run(recipe, tmp_path / f"{share}.work")
        folders[share] = load_file(recipe.out / WEIGHTS)
    whole, quarter, none = (folders[share] for share in (1.0, 0.25, 0.0))
    for name, tensor in whole.items():
        expected = tensor.astype(np.float32)
        if name.startswith("head."):
            expected = 0.25 * expected + 0.75 * none[name].astype(np.float32)
        elif name.endswith(".up"):
            assert np.abs(expected).max() > 1e-3
            assert not none[name].any()
            expected = 0.25 * expected
        np.testing.assert_allclose(quarter[name], expected, rtol=2e-3, atol=1e-4)
    assert np.abs(whole["head.project.weight"].astype(float) - none["head.project.weight"]).max() > 1e-3
    with pytest.raises(InvalidInput, match="wise_ft_alpha is"):
        load_recipe(recipe_of("multivector", wise_ft_alpha=1.5, **options))


def _student_of(student: Any, recipe: Any) -> Any:
    student.load_start(recipe.out)
    if hasattr(student, "_rules"):
        student._rules = [None]
    return student.eval()


def _scores(kind: VectorKind, q: Any, d: Any) -> np.ndarray:
    if kind is VectorKind.DENSE:
        return np.asarray(d.values @ q.values[0])
    scores = []
    for start, stop in zip(d.offsets[:-1], d.offsets[1:], strict=True):
        if kind is VectorKind.TOKENS:
            scores.append(float((q.values @ d.values[start:stop].T).max(axis=1).sum()))
        else:
            document_weights = dict(zip(d.terms[start:stop].tolist(), d.weights[start:stop].tolist(), strict=True))
            scores.append(
                sum(w * document_weights.get(t, 0.0) for t, w in zip(q.terms.tolist(), q.weights.tolist(), strict=True))
            )
    return np.array(scores)


def test_a_report_holds_measures_before_and_after_the_curve_and_the_seed(recipe_of: Recipes, tmp_path: Path) -> None:
    recipe = load_recipe(recipe_of("cross_encoder", **JOBS["cross_encoder"]))
    fitted = run(recipe, tmp_path / "work")
    facts = json.loads((recipe.out / "report.json").read_text())
    assert facts["recipe"]["fit"]["seed"] == 42
    assert facts["before"].keys() == facts["after"].keys() == {"all", "toy"}
    assert len(facts["curve"]) == fitted.steps == 2
    assert (recipe.out / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert "| toy | nDCG@10 |" in (recipe.out / "report.md").read_text()


OLD_KEYS = [
    ("cross_encoder", "fit", "rate", "fit.learning_rate"),
    ("cross_encoder", "fit", "batch", "fit.batch_size"),
    ("cross_encoder", "data", "held_out", "data.max_eval_groups"),
    ("cross_encoder", "adapter", "targets", "adapter.target_modules"),
    ("cross_encoder", "cet", "form", "cet.selection_model"),
    ("cross_encoder", "", "start", "init_from"),
    ("cross_encoder", "", "weights", "weight_column"),
    ("clicks", "", "least", "propensity_clip"),
    ("compress", "", "keep", "keep_ratio"),
    ("dense", "", "cached", "gradient_cache"),
    ("multivector", "", "learnt_share", "wise_ft_alpha"),
    ("reranker", "", "over", "softmax_over"),
    ("sparse", "", "least", "min_df"),
    ("universal", "", "below", "min_negative_rank"),
]


@pytest.mark.parametrize(("job", "table", "old", "present"), OLD_KEYS)
def test_a_renamed_key_fails_with_its_present_name(
    recipe_of: Recipes, job: str, table: str, old: str, present: str
) -> None:
    options: dict[str, Any] = {"tables": {table: {old: 1}}} if table else {old: 1}
    with pytest.raises(InvalidInput, match=rf"'[a-z.]*{old}' is now called '{present}'"):
        load_recipe(recipe_of(job, **options))
    dotted = f"{table}.{old}" if table else old
    with pytest.raises(InvalidInput, match=f"is now called '{present}'"):
        load_recipe(recipe_of(job), {dotted: "1"})


def test_every_present_name_of_a_renamed_key_exists() -> None:
    for recipe, _ in STUDENTS.values():
        for part in (recipe, DataConfig, FitConfig, AdapterConfig, CetConfig):
            names = {f.name for f in fields(part)}
            assert set(part.RENAMED.values()) <= names
            assert not set(part.RENAMED) & names - {"weights"}


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.toml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_loads(path: Path) -> None:
    assert load_recipe(path).job in STUDENTS


@pytest.mark.parametrize("job", ["cross_encoder", "dense"])
def test_a_job_without_a_head_over_token_vectors_refuses_stored_ones(
    job: str, recipe_of: Recipes, tmp_path: Path
) -> None:
    tables = {"adapter": ADAPTER, "data": {"token_vectors": str(tmp_path)}}
    with pytest.raises(
        InvalidInput, match=f"job {job} cannot learn from stored token vectors; leave data.token_vectors"
    ):
        run(load_recipe(recipe_of(job, tables=tables)), tmp_path / "work")


def test_unknown_keys_and_jobs_are_named(recipe_of: Recipes) -> None:
    with pytest.raises(InvalidInput, match=r"'fit.bach_size'; did you mean 'batch_size'"):
        load_recipe(recipe_of("cross_encoder", tables={"fit": {"bach_size": 3}}))
    with pytest.raises(InvalidInput, match=r"unknown job 'crossencoder'.*cross_encoder"):
        load_recipe(recipe_of("crossencoder"))
    with pytest.raises(NotFound, match="recipe"):
        load_recipe(Path("nowhere.toml"))
    with pytest.raises(InvalidInput, match=r"adapter\.rank"):
        load_recipe(recipe_of("dense"))
    assert load_recipe(recipe_of("cross_encoder"), {"fit.batch_size": "64"}).fit.batch_size == 64


@pytest.mark.slow
def test_a_killed_command_resumes_at_its_checkpoint(recipe_of: Recipes, tmp_path: Path) -> None:
    options = {"tables": {"adapter": ADAPTER, "data": {"epochs": 100}, "fit": {"save_steps": 5}}}
    command = [sys.executable, "-m", "chamfer", "train", str(recipe_of("cross_encoder", **options))]
    environment = dict(os.environ)
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    work = tmp_path / "model.work" / "checkpoints"
    while not list(work.glob("checkpoint-*/trainer_state.json")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "model" / "report.json").exists()
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert json.loads((tmp_path / "model" / "report.json").read_text())["resumed_at"] >= 5


@pytest.mark.slow
def test_two_processes_train_what_one_would_on_batches_of_twice_the_size(recipe_of: Recipes, tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    for name, batch, command in (("one", 4, [sys.executable, "-m"]), ("two", 2, launch)):
        tables = {"adapter": ADAPTER, "data": {"epochs": 4}, "fit": {"batch_size": batch}}
        path = recipe_of("cross_encoder", name, tables=tables)
        subprocess.run([*command, "chamfer", "train", str(path)], env=environment, check=True, capture_output=True)
    one, two = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("one", "two"))
    assert one["steps"] == two["steps"] == 8
    assert one["before"] == two["before"]
    for single, other in zip(one["curve"], two["curve"], strict=True):
        assert single["loss"] == pytest.approx(other["loss"], rel=1e-3)
    expected, actual = load_file(tmp_path / "one" / WEIGHTS), load_file(tmp_path / "two" / WEIGHTS)
    # A listwise loss does not depend on a bias of all scores: its gradient is rounding, which Adam makes a step of.
    for name in expected.keys() - {"head.outer.bias"}:
        one_, two_ = (weights[name].astype(np.float32) for weights in (expected, actual))
        np.testing.assert_allclose(two_, one_, atol=1e-3, err_msg=name)
