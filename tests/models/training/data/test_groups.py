"""Groups on disk, and how candidates are drawn from a pool."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support_training import Recipes, make_groups

from chamfer.core.errors import InvalidInput, NotFound
from chamfer.models.training.data.groups import (
    Group,
    check_groups,
    read_documents,
    read_groups,
    sample_candidates,
    write_documents,
    write_groups,
)
from chamfer.models.training.jobs.registry import select_rows, shortened
from chamfer.models.training.loop.draws import Draws
from chamfer.models.training.loop.recipe import DataConfig
from chamfer.settings import load_recipe


def test_groups_and_documents_come_back_as_they_were_written(tmp_path: Path) -> None:
    groups, documents = make_groups(3)
    write_groups(tmp_path / "g.parquet", groups)
    write_documents(tmp_path / "d.parquet", [(list(documents), list(documents.values()))])
    for read, written in zip(read_groups(tmp_path / "g.parquet"), groups, strict=True):
        assert (read.query_id, read.query, list(read.doc_ids)) == (written.query_id, written.query, written.doc_ids)
        assert list(read.labels) == written.labels
        np.testing.assert_allclose(read.teachers["bm25"], written.teachers["bm25"])
    assert read_documents(tmp_path / "d.parquet") == documents


def test_a_teacher_missing_from_a_group_is_absent_when_read(tmp_path: Path) -> None:
    groups, _ = make_groups(1)
    bare = Group(query_id="x", query="?", doc_ids=["a"], labels=[1.0])
    write_groups(tmp_path / "g.parquet", [*groups, bare])
    assert read_groups(tmp_path / "g.parquet")[1].teachers == {}


def test_inconsistent_groups_are_refused_with_the_reason() -> None:
    with pytest.raises(InvalidInput, match=r"'q' has 2 candidates and 1 labels"):
        Group(query_id="q", query="?", doc_ids=["a", "b"], labels=[1.0])
    with pytest.raises(InvalidInput, match=r"'q' has no relevant candidate"):
        check_groups([Group(query_id="q", query="?", doc_ids=["a"], labels=[0.0])], {"a": ""})
    with pytest.raises(InvalidInput, match=r"document 'b', which is not in the documents"):
        check_groups([Group(query_id="q", query="?", doc_ids=["a", "b"], labels=[1.0, 0])], {"a": ""})
    with pytest.raises(NotFound, match=r"g\.parquet does not exist"):
        read_groups(Path("g.parquet"))


def test_negatives_are_never_positives_and_come_from_the_configured_range() -> None:
    labels = [0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0]
    group = Group(query_id="q", query="?", doc_ids=[str(i) for i in range(8)], labels=labels)
    for seed in range(50):
        first, *others = sample_candidates(group, 2, 1, 4, np.random.default_rng(seed))
        assert first in (1, 4)
        assert set(others) <= {2, 3, 5}  # the pool's negatives 0, 2, 3, 5, 6, 7 at ranks 1 to 3
        assert len(set(others)) == 2


def test_a_draw_depends_on_seed_epoch_and_index_alone() -> None:
    groups, documents = make_groups(6)
    config = DataConfig(groups=Path(), documents=Path(), num_negatives=2, epochs=2)
    one, two = (Draws(groups, documents, config, ["bm25"], seed=3) for _ in range(2))
    assert [one[i] for i in range(12)] == [two[i] for i in reversed(range(12))][::-1]
    assert sorted(one[i].query for i in range(6)) == sorted(one[i].query for i in range(6, 12))
    assert [one[i].query for i in range(6)] != [one[i].query for i in range(6, 12)]
    assert one[0] != Draws(groups, documents, config, ["bm25"], seed=4)[0]


def test_fractions_and_limits_select_groups_and_those_for_evaluation_are_the_same_for_every_seed(
    recipe_of: Recipes,
) -> None:
    sources = ["a"] * 100 + ["b"] * 100 + ["a"] * 10
    splits = ["train"] * 200 + ["dev"] * 10

    def rows(seed: str, **data: str) -> list[int]:
        path = recipe_of("cross_encoder", tables={"data": {"max_eval_groups": 3}})
        return select_rows(
            sources, splits, load_recipe(path, {"fit.seed": seed, **{f"data.{k}": v for k, v in data.items()}})
        )

    every = rows("1")
    assert [row for row in every if row < 200] == list(range(200))
    half = rows("1", **{"source_fractions.b": "0.5"})
    assert 30 < sum(100 <= row < 200 for row in half) < 70
    assert len(rows("1", max_train_groups="20")) == 23
    assert rows("1", max_train_groups="20")[-3:] == rows("2", max_train_groups="20")[-3:] == every[-3:]
    assert rows("1", **{"source_fractions.a": "0"}) == list(range(100, 200))


def test_a_group_cut_short_keeps_a_relevant_candidate() -> None:
    group = Group(query_id="q", query="?", doc_ids=["a", "b", "c", "d"], labels=[0, 0, 0, 1.0])
    assert list(shortened(group, 2).doc_ids) == ["a", "d"]
    assert list(shortened(group, 9).doc_ids) == ["a", "b", "c", "d"]
