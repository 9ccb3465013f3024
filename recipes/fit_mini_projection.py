"""`python -m recipes.fit_mini_projection CORPUS... --out FILE` fits the projection of networks/projection.py."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

from safetensors.numpy import save_file

from chamfer.core.types import Array, Document, VectorKind
from chamfer.models.backends.config import DeviceConfig
from chamfer.models.encoders.mini import load_mini
from chamfer.models.networks.projection import MODEL_FILE, fit_projection


def main() -> None:
    """Fits the projection on BEIR folders or JSONL files and writes it."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("corpus", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=MODEL_FILE)
    arguments = parser.parse_args()
    encoder = load_mini("mini-384", DeviceConfig(), projected=False)

    def batches() -> Iterable[Array]:
        for corpus in arguments.corpus:
            path = corpus / "corpus.jsonl" if corpus.is_dir() else corpus
            lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            documents = [Document(str(n), row["text"], row.get("title", "")) for n, row in enumerate(lines)]
            for start in range(0, len(documents), 512):
                tokens = encoder.encode_documents(documents[start : start + 512], [VectorKind.TOKENS]).tokens
                if tokens is not None:
                    yield tokens.values

    projection, preserved = fit_projection(batches())
    save_file({"projection": projection}, arguments.out, metadata={"kept": f"{preserved:.6f}"})
    before, after = projection.shape
    print(f"{arguments.out}: {before} -> {after}, preserves {preserved:.4f} of the squared length")


if __name__ == "__main__":
    main()
