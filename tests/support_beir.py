"""BEIR folders of a few synthetic documents, named after the data sets that the mini models are trained on."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

NAMES = ("fairytaleqa", "scifact", "nl2bash", "medquad")
SPLITS = ("train", "dev", "test")
_WORDS = [a + b for a in ("fox", "king", "stone", "cell", "gene", "drug") for b in ("", "like", "wise", "ness", "less")]


def write_sets(data: Path, *, documents: int = 12, questions: int = 4, seed: int = 0) -> Path:
    """All four folders: `questions` queries per split, each made of words of the one document that is relevant."""
    rng = np.random.default_rng(seed)
    for name in NAMES:
        folder = data / name
        corpus = [
            {"_id": f"d{n}", "title": _words(rng, 2), "text": f"{_words(rng, 10)} {name} number {n}"}
            for n in range(documents)
        ]
        queries, qrels = [], {split: ["query-id\tcorpus-id\tscore"] for split in SPLITS}
        for split in SPLITS:
            for number in range(questions):
                wanted = corpus[int(rng.integers(documents))]
                queries.append({"_id": f"{split}-{number}", "text": " ".join(rng.choice(wanted["text"].split(), 4))})
                qrels[split].append(f"{split}-{number}\t{wanted['_id']}\t1")
        _write_lines(folder / "corpus.jsonl", map(json.dumps, corpus))
        _write_lines(folder / "queries.jsonl", map(json.dumps, queries))
        for split, lines in qrels.items():
            _write_lines(folder / "qrels" / f"{split}.tsv", lines)
    return data


def _words(rng: np.random.Generator, n: int) -> str:
    return " ".join(rng.choice(_WORDS, n))


def _write_lines(path: Path, lines: Iterable[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
