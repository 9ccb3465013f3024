"""Encodes corpora as learned sparse vectors for benchmarks/sparse.py, with the weights that sparse.sh downloads.

python -m benchmarks.peers.splade ENVIRONMENT OUT CORPUS... writes the model as a sentence-transformers folder OUT/model
and OUT/splade-NAME.npz for each corpus folder. 25,000 passages take half an hour on one core.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from chamfer.core.types import VectorKind
from chamfer.indexing.building.corpus import read_corpus, read_queries
from chamfer.models.backends.config import DeviceConfig
from chamfer.models.encoders.sentence_transformers import load_hub_encoder

LENGTH = 256


def main() -> None:
    """Saves the model, then encodes every corpus."""
    environment, out, *corpora = map(Path, sys.argv[1:])
    save_model(next(environment.glob("lib/python*/site-packages/cognition/model")), out / "model")
    encoder = load_hub_encoder("splade", str(out / "model"), VectorKind.SPARSE, DeviceConfig())
    for corpus in corpora:
        documents, queries = list(read_corpus(str(corpus))), read_queries(corpus)
        document_vectors = encoder.encode_documents(documents, [VectorKind.SPARSE]).sparse
        query_vectors = encoder.encode_queries(queries, [VectorKind.SPARSE]).sparse
        assert document_vectors is not None
        assert query_vectors is not None
        np.savez(
            out / f"splade-{corpus.name}.npz",
            **{name: getattr(document_vectors, name) for name in ("offsets", "terms", "weights")},
            **{f"q_{name}": getattr(query_vectors, name) for name in ("offsets", "terms", "weights")},
            vocabulary=document_vectors.vocabulary,
        )


def save_model(weights: Path, out: Path) -> None:
    """Writes the weights as a sentence-transformers model that truncates texts to LENGTH tokens."""
    from sentence_transformers import SparseEncoder

    model = SparseEncoder(str(weights), device="cpu")
    model.max_seq_length = LENGTH
    model.save(str(out))


if __name__ == "__main__":
    main()
