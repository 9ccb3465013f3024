"""Any encoder that sentence-transformers loads, by hub name or local path: dense, multi-vector or sparse.

Prompts and the roles of query and document are the model's own. Queries are encoded one by one, because torch gives
other last bits for other batch shapes and a query's answer must not depend on who else asks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from chamfer.core.artifact import digest_of
from chamfer.core.errors import ChamferError, Internal, InvalidInput, NotFound
from chamfer.core.protocols import EncoderSpec
from chamfer.core.types import (
    DenseVectors,
    Document,
    Encoding,
    Query,
    SparseVectors,
    TokenVectors,
    VectorKind,
    Vectors,
)
from chamfer.models.backends.backend import DeviceConfig, decide
from chamfer.models.backends.token_batches import clean, length_groups

_CLASSES = {
    VectorKind.DENSE: "SentenceTransformer",
    VectorKind.TOKENS: "MultiVectorEncoder",
    VectorKind.SPARSE: "SparseEncoder",
}


class HubEncoder:
    """One sentence-transformers model that gives one kind of vectors. Made by `load_hub_encoder`."""

    def __init__(self, spec: EncoderSpec, kind: VectorKind, model: Any, batch_tokens: int) -> None:
        self.spec = spec
        self._kind = kind
        self._model = model
        self._batch_tokens = batch_tokens

    def encode_queries(self, queries: Sequence[Query], kinds: Collection[VectorKind]) -> Encoding:
        """See chamfer.core.protocols.Encoder. Images are refused."""
        for query in queries:
            if query.image is not None:
                raise InvalidInput(f"encoder {self.spec.name} is used for text, query {query.query_id!r} has an image")
        return self._encode([query.text for query in queries], kinds, self._model.encode_query, alone=True)

    def encode_documents(self, documents: Sequence[Document], kinds: Collection[VectorKind]) -> Encoding:
        """See chamfer.core.protocols.Encoder."""
        return self._encode(
            [document.content for document in documents], kinds, self._model.encode_document, alone=False
        )

    def _encode(self, texts: Sequence[str], kinds: Collection[VectorKind], encode: Any, *, alone: bool) -> Encoding:
        if unknown := set(kinds) - {self._kind}:
            raise InvalidInput(f"encoder {self.spec.name} gives {self._kind}, not {sorted(unknown)}")
        cleaned = [clean(text) for text in texts]
        n_tokens = _count_tokens(self._model, cleaned)
        limit = self.spec.query_tokens if alone else self.spec.document_tokens
        truncated = n_tokens > limit
        if not kinds or not texts:
            return Encoding(n_tokens, truncated)
        lengths = np.minimum(n_tokens, limit).tolist()
        budget = 1 if alone else self._batch_tokens
        parts: list[Vectors] = []
        order: list[int] = []
        for _, rows in length_groups(lengths, limit=limit, budget=budget):
            out = encode([cleaned[row] for row in rows], batch_size=len(rows), show_progress_bar=False)
            parts.append(_to_vectors(self._kind, out, self.spec.dims[self._kind]))
            order += rows
        vectors = _concatenate(parts).take(np.argsort(order))
        return Encoding(n_tokens, truncated, **{self._kind.value: vectors})


def load_hub_encoder(name: str, model_name: str, kind: VectorKind, config: DeviceConfig) -> HubEncoder:
    """The encoder. NotFound where the weights are neither a local path nor in the local hub cache."""
    model = open_model(_CLASSES[kind], model_name, config)
    limit = int(model.max_seq_length or 512)
    spec = EncoderSpec(
        name=name,
        dims={kind: _dim(model, kind)},
        query_tokens=limit,
        document_tokens=limit,
        fingerprint=fingerprint(model),
    )
    return HubEncoder(spec, kind, model, config.batch_tokens)


def open_model(class_name: str, model_name: str, config: DeviceConfig) -> Any:
    """A sentence-transformers model on the decided device; torch is the backend of foreign models."""
    import sentence_transformers
    import torch

    decision = decide(config)
    bf16 = decision.precision == "bf16" and decision.device == "cuda"
    if config.threads and decision.device == "cpu":
        torch.set_num_threads(config.threads)
    try:
        return getattr(sentence_transformers, class_name)(
            model_name,
            device=decision.device,
            local_files_only=not config.allow_download or Path(model_name).exists(),
            model_kwargs={"dtype": torch.bfloat16 if bf16 else torch.float32},
        )
    except ChamferError:
        raise
    except OSError as error:
        raise NotFound(
            f"model {model_name!r} is neither a local path nor in the local hub cache ({error}); "
            "set models.device.allow_download to fetch it"
        ) from error
    except (ValueError, TypeError, KeyError) as error:
        raise InvalidInput(f"model {model_name!r} cannot be opened as a {class_name}: {error}") from error


def fingerprint(model: Any) -> str:
    """SHA-256 over weights, tokenizer, modules with their settings, prompts and lengths."""
    weights = hashlib.sha256()
    for key, tensor in sorted(model.state_dict().items()):
        weights.update(key.encode())
        weights.update(str(tensor.dtype).encode())
        weights.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    tokenizer = model.tokenizer
    vocabulary = tokenizer.backend_tokenizer.to_str() if hasattr(tokenizer, "backend_tokenizer") else repr(tokenizer)
    modules = [(type(module).__name__, str(getattr(module, "get_config_dict", dict)())) for module in model.children()]
    prompts = sorted((getattr(model, "prompts", None) or {}).items())
    length = getattr(model, "max_seq_length", getattr(model, "max_length", None))
    return digest_of(weights.hexdigest(), vocabulary, modules, prompts, length)


def _count_tokens(model: Any, texts: Sequence[str]) -> Any:
    """Tokens of each text before truncation, special ones included: i32 [N]."""
    if not texts:
        return np.zeros(0, dtype=np.int32)
    encoded = model.tokenizer(list(texts), truncation=False, padding=False, verbose=False)["input_ids"]
    return np.array([len(ids) for ids in encoded], dtype=np.int32)


def _dim(model: Any, kind: VectorKind) -> int:
    if kind is VectorKind.SPARSE:  # the model's own answer is the width of its backbone; its output tells the truth
        return int(model.encode_document(["?"], show_progress_bar=False).shape[1])
    dim = model.get_embedding_dimension()
    if dim is None:
        raise Internal(f"the model does not say the dimension of its {kind} vectors")
    return int(dim)


def _to_vectors(kind: VectorKind, out: Any, dim: int) -> Vectors:
    if kind is VectorKind.DENSE:
        return DenseVectors(np.ascontiguousarray(out, dtype=np.float32))
    if kind is VectorKind.TOKENS:
        matrices = [np.asarray(m.float().cpu().numpy(), dtype=np.float32).reshape(-1, dim) for m in out]
        offsets = np.zeros(len(matrices) + 1, dtype=np.int64)
        np.cumsum([len(matrix) for matrix in matrices], out=offsets[1:])
        return TokenVectors(np.concatenate(matrices), offsets)
    indices = out.coalesce().indices().cpu().numpy()
    weights = out.coalesce().values().float().cpu().numpy()
    keep = weights > 0
    offsets = np.zeros(out.shape[0] + 1, dtype=np.int64)
    np.cumsum(np.bincount(indices[0][keep], minlength=out.shape[0]), out=offsets[1:])
    return SparseVectors(weights[keep].astype(np.float32), indices[1][keep].astype(np.int32), offsets, dim)


def _concatenate(parts: list[Any]) -> Any:
    return type(parts[0]).concatenate(parts)
