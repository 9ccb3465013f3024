"""Encoder of one vector per text, image or both, from a multimodal chat model that job `universal` trained.

After MM-Embed (arXiv 2411.02571) and UniME-V2 (arXiv 2510.13515).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from chamfer.core.artifact import digest_of
from chamfer.core.errors import InvalidInput
from chamfer.core.protocols import EncoderSpec
from chamfer.core.types import DenseVectors, Document, Encoding, Query, VectorKind
from chamfer.models.backends.config import DeviceConfig
from chamfer.models.encoders.mini import normalised
from chamfer.models.networks.chat_messages import embedding_messages
from chamfer.models.networks.chat_model import (
    LanguageModel,
    Prompt,
    load_language_model,
    shortened_document,
    shortened_query,
)
from chamfer.models.networks.checkpoint import describe


class UniversalEncoder:
    """The hidden state of the last token after a prompt, at unit length. Made by `load_universal_encoder`."""

    def __init__(self, spec: EncoderSpec, language: LanguageModel, instruction: str, batch_tokens: int) -> None:
        self.spec = spec
        self._language = language
        self._instruction = instruction
        self._batch_tokens = batch_tokens

    def encode_queries(self, queries: Sequence[Query], kinds: Collection[VectorKind]) -> Encoding:
        """See chamfer.core.protocols.Encoder. One at a time: the last bits depend on the batch shape."""
        if not self._language.reads_images and any(query.image is not None for query in queries):
            raise InvalidInput(f"encoder {self.spec.name} reads text only, a query has an image")
        limit = self.spec.query_tokens
        prompts = [query_prompt(self._language, query, self._instruction, limit) for query in queries]
        return self._encode(prompts, [query.text for query in queries], limit, kinds, budget=1)

    def encode_documents(self, documents: Sequence[Document], kinds: Collection[VectorKind]) -> Encoding:
        """See chamfer.core.protocols.Encoder. Images are ignored if the model reads text only."""
        limit = self.spec.document_tokens
        prompts = [document_prompt(self._language, document, limit) for document in documents]
        return self._encode(prompts, [d.content for d in documents], limit, kinds, budget=self._batch_tokens)

    def _encode(
        self, prompts: list[Prompt], texts: list[str], limit: int, kinds: Collection[VectorKind], *, budget: int
    ) -> Encoding:
        import torch

        if unknown := set(kinds) - set(self.spec.dims):
            raise InvalidInput(f"encoder {self.spec.name} gives {sorted(self.spec.dims)}, not {sorted(unknown)}")
        lengths = self._language.lengths(texts)
        if not kinds:
            return Encoding(lengths, lengths > limit)
        values = np.zeros((len(prompts), self.spec.dims[VectorKind.DENSE]), dtype=np.float32)
        with torch.inference_mode():
            for rows, inputs in self._language.batches(prompts, budget):
                values[rows] = normalised(self._language.last_states(inputs).cpu().numpy())
        return Encoding(lengths, lengths > limit, dense=DenseVectors(values))


def query_prompt(language: LanguageModel, query: Query, instruction: str, limit: int) -> Prompt:
    """The prompt of a query: instruction, image, text; missing parts leave no trace."""
    short = shortened_query(language, query, limit)
    return language.prompt(embedding_messages(instruction, short.image, short.text), "")


def document_prompt(language: LanguageModel, document: Document, limit: int) -> Prompt:
    """The prompt of a document: image, text."""
    short = shortened_document(language, document, limit)
    return language.prompt(embedding_messages("", short.image, short.content), "")


def load_universal_encoder(name: str, folder: Path, config: DeviceConfig) -> UniversalEncoder:
    """The encoder in a folder that job `universal` wrote. Raises as `load_language_model` does."""
    description = describe(folder)
    language = load_language_model(str(folder), config)
    instruction = str(description.head["instruction"])
    spec = EncoderSpec(
        name=name,
        dims={VectorKind.DENSE: int(language.module.get_input_embeddings().weight.shape[1])},
        query_tokens=description.query_tokens,
        document_tokens=description.document_tokens,
        fingerprint=digest_of(
            "universal", language.fingerprint, instruction, description.query_tokens, description.document_tokens
        ),
    )
    return UniversalEncoder(spec, language, instruction, config.batch_tokens)
