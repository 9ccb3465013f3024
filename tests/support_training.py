"""A tiny backbone and a tiny set of groups, on which every job trains in seconds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support_judges import tiny_llava_judge
from support_models import tiny_transformer

from chamfer.models.training.data.groups import Group, write_documents, write_groups

Recipes = Callable[..., Path]


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_transformer(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="session")
def multimodal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A multimodal chat model: two layers, random weights, the real classes."""
    return tiny_llava_judge(tmp_path_factory.mktemp("llava"))


def make_groups(n: int, seed: int = 0) -> tuple[list[Group], dict[str, str]]:
    """n queries of two words, each with a document that has both of them and three that have one or none."""
    rng = np.random.default_rng(seed)
    groups, documents = [], {}
    for number in range(n):
        a, b, *others = (f"w{i}" for i in rng.permutation(60)[:14])
        texts = [
            f"{a} {b} {others[0]}",
            f"{a} {others[1]} {others[2]}",
            f"{others[3]} {others[4]}",
            " ".join(others[5:9]),
        ]
        ids = [f"d{number}-{index}" for index in range(len(texts))]
        documents |= dict(zip(ids, texts, strict=True))
        groups.append(
            Group(
                query_id=f"q{number}",
                query=f"{b} {a}",
                doc_ids=ids,
                labels=[1.0, 0.0, 0.0, 0.0],
                source="toy",
                split="train" if number < 8 else "dev",
                teachers={
                    "bm25": [9.0, 4.0, 0.0, 0.0],
                    "dense": [0.9, 0.5, 0.1, 0.2],
                    "judged": [1.0, 1.0, 0.0, 0.0],
                    "rank": [1, 2, 3, 4],
                },
            )
        )
    return groups, documents


def toml(value: Any) -> str:
    """A value as TOML; mappings as inline tables."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(inner)}" for key, inner in value.items()) + "}"
    return json.dumps(value)


@pytest.fixture
def recipe_of(backbone: Path, tmp_path: Path) -> Recipes:
    """Writes a recipe over eight training groups and two held out, with the given tables; returns its path."""
    groups, documents = make_groups(10)
    write_groups(tmp_path / "groups.parquet", groups)
    write_documents(tmp_path / "documents.parquet", [(list(documents), list(documents.values()))])

    def write(job: str, out: str = "model", *, tables: dict[str, dict[str, Any]] | None = None, **keys: Any) -> Path:
        plain = {"job": job, "out": str(tmp_path / out), "backbone": str(backbone), "document_tokens": 24, **keys}
        data = {
            "groups": str(tmp_path / "groups.parquet"),
            "documents": str(tmp_path / "documents.parquet"),
            "num_negatives": 3,
            "max_eval_groups": 2,
            "eval_depth": 4,
        }
        fit = {"batch_size": 4, "precision": "fp32", "threads": 1, "learning_rate": 3e-3, "head_learning_rate": 1e-2}
        sections = {"data": data, "fit": fit}
        for name, values in (tables or {}).items():
            sections[name] = {**sections.get(name, {}), **values}
        lines = [f"{key} = {toml(value)}" for key, value in plain.items()]
        for name, values in sections.items():
            lines += [f"[{name}]", *(f"{key} = {toml(value)}" for key, value in values.items())]
        path = tmp_path / f"{out}.toml"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write
