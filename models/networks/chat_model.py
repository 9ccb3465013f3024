"""Chat models, of text or of text and images: conversations to next-token logits or to a last hidden state.

Rerankers read the logits, the encoder of job `universal` the hidden state. Both run through torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from chamfer.core.artifact import digest_of
from chamfer.core.errors import InvalidInput, NotFound
from chamfer.core.types import F32, I32, Document, Query
from chamfer.models.backends.config import DeviceConfig, decide
from chamfer.models.backends.hub import model_fingerprint, quiet_transformers
from chamfer.models.backends.token_batches import CHARACTERS_PER_TOKEN, clean, length_groups
from chamfer.models.networks.chat_messages import Message, as_text, images_of
from chamfer.models.networks.checkpoint import DESCRIPTION, open_checkpoint
from chamfer.models.networks.images import open_image
from chamfer.models.networks.transformer import merge_adapter

if TYPE_CHECKING:
    import torch

LANGUAGE_KINDS = ("reranker", "universal")
MAX_TEXT_TOKENS = 4096
MAX_IMAGE_SIDE = 1024
PIXELS_PER_TOKEN = 28 * 28  # of the Qwen family; used as an estimate for every model


@dataclass(frozen=True, slots=True)
class Prompt:
    """A rendered conversation with its images, and an estimate of its length in tokens."""

    text: str
    images: list[Any]
    tokens: int


class LanguageModel:
    """A chat model and its processor. Made by `load_language_model`."""

    def __init__(self, name: str, model: Any, processor: Any, batch_tokens: int) -> None:
        self.name = name
        self.reads_images = hasattr(processor, "image_processor")
        self.module = model
        self._processor = processor
        self._tokenizer = getattr(processor, "tokenizer", processor)
        self._tokenizer.padding_side = "left"  # the last position is then the last token of each
        self._batch_tokens = batch_tokens
        if not getattr(processor, "chat_template", None) and not self._tokenizer.chat_template:
            raise InvalidInput(
                f"model {name} has no chat template, without which its prompts would differ from training"
            )
        self.fingerprint = digest_of(_fingerprint(model, self._tokenizer), self._template())

    def _template(self) -> str:
        return str(getattr(self._processor, "chat_template", None) or self._tokenizer.chat_template)

    def prompt(self, messages: list[Message], answer_start: str) -> Prompt:
        """The conversation rendered by the model's own chat template, with the first characters of the answer."""
        images = [open_image(image, MAX_IMAGE_SIDE) for image in images_of(messages)]
        template_input = messages if self.reads_images else as_text(messages)
        text = (
            self._processor.apply_chat_template(template_input, tokenize=False, add_generation_prompt=True)
            + answer_start
        )
        tokens = len(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        pixels = sum(image.width * image.height for image in images)
        return Prompt(text, images, tokens + pixels // PIXELS_PER_TOKEN)

    def shortened(self, text: str, tokens: int = MAX_TEXT_TOKENS) -> str:
        """The text cut to its first `tokens` tokens, so that the rest of a prompt is never truncated."""
        readable = clean(text[: tokens * CHARACTERS_PER_TOKEN])
        encoded = self._tokenizer(readable, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        offsets = encoded["offset_mapping"]
        return readable if len(offsets) <= tokens else readable[: offsets[tokens - 1][1]]

    def lengths(self, texts: Sequence[str]) -> I32:
        """Number of tokens i32 [N] of each text, before truncation."""
        encoded = (
            self._tokenizer([clean(text) for text in texts], add_special_tokens=False, verbose=False)["input_ids"]
            if texts
            else []
        )
        return np.array([len(ids) for ids in encoded], dtype=np.int32)

    def answer_ids(self, spellings: Sequence[str]) -> list[int]:
        """The ids, ascending, of those spellings that are a single token; InvalidInput if none is."""
        encoded = [self._tokenizer(s, add_special_tokens=False)["input_ids"] for s in spellings]
        single = sorted({ids[0] for ids in encoded if len(ids) == 1})
        if not single:
            raise InvalidInput(f"none of {list(spellings)} is a single token of model {self.name}; scoring needs one")
        return single

    def next_logits(self, prompts: Sequence[Prompt], ids: Sequence[int]) -> F32:
        """Logits f32 [n, len(ids)] of the given next tokens. Batched by length under the token budget."""
        import torch

        selected = np.zeros((len(prompts), len(ids)), dtype=np.float32)
        with torch.inference_mode():
            for rows, inputs in self.batches(prompts, self._batch_tokens):
                selected[rows] = self.logits(inputs)[:, list(ids)].cpu().numpy()
        return selected

    def batches(self, prompts: Sequence[Prompt], budget: int) -> Iterator[tuple[list[int], dict[str, Any]]]:
        """(rows, the model's inputs) of prompts of similar length, at most `budget` padded tokens each."""
        lengths = [prompt.tokens for prompt in prompts]
        for _, rows in length_groups(lengths, limit=max(lengths, default=1), budget=budget):
            yield rows, self._inputs([prompts[row] for row in rows])

    def logits(self, inputs: dict[str, Any]) -> torch.Tensor:
        """Logits f32 [B, V] of the next token; differentiable unless torch's inference mode is on."""
        logits: torch.Tensor = self.module(**inputs, logits_to_keep=1, use_cache=False).logits
        return logits[:, -1].float()

    def last_states(self, inputs: dict[str, Any]) -> torch.Tensor:
        """Hidden states f32 [B, H] of the last token, which attends to the whole prompt."""
        states: torch.Tensor = self.module.base_model(**inputs, use_cache=False).last_hidden_state
        return states[:, -1].float()

    def _inputs(self, prompts: list[Prompt]) -> dict[str, Any]:
        texts = [prompt.text for prompt in prompts]
        options: dict[str, Any] = {"padding": True, "return_tensors": "pt"}
        if not self.reads_images:
            inputs = self._tokenizer(texts, add_special_tokens=False, **options)
        else:
            images = [image for prompt in prompts for image in prompt.images]
            inputs = self._processor(text=texts, images=images or None, **options)
        return {name: tensor.to(self.module.device) for name, tensor in inputs.items()}


def shortened_query(model: LanguageModel, query: Query, tokens: int = MAX_TEXT_TOKENS) -> Query:
    """The query with its text cut to `tokens`, and without its image if the model reads text only."""
    return replace(query, text=model.shortened(query.text, tokens), image=query.image if model.reads_images else None)


def shortened_document(model: LanguageModel, document: Document, tokens: int = MAX_TEXT_TOKENS) -> Document:
    """The document as one text cut to `tokens`, and without its image if the model reads text only."""
    image = document.image if model.reads_images else None
    return Document(document.doc_id, model.shortened(document.content, tokens), image=image)


def load_language_model(name: str, config: DeviceConfig) -> LanguageModel:
    """The chat model of this hub name or local path, with its image processor if it has one.

    A folder that `chamfer train` wrote is opened as its backbone with the trained adapter merged in. Runs through torch
    in bf16 on CUDA, else in fp32 unless models.reranker_device.precision is bf16. Raises NotFound where the weights
    are not available locally, InvalidInput for a model that is not a chat model.
    """
    folder = Path(name)
    if not (folder / DESCRIPTION).is_file():
        return LanguageModel(name, *_open(name, config), config.batch_tokens)
    checkpoint = open_checkpoint(folder)
    if (kind := checkpoint.description.kind) not in LANGUAGE_KINDS:
        raise InvalidInput(f"{folder} holds a model of kind {kind}, expected one of {', '.join(LANGUAGE_KINDS)}")
    model, processor = _open(checkpoint.description.backbone, config)
    merge_adapter(model, checkpoint.adapter)
    return LanguageModel(name, model, processor, config.batch_tokens)


def _open(source: str, config: DeviceConfig) -> tuple[Any, Any]:
    """The model and its processor or tokenizer."""
    import torch
    import transformers

    decision = decide(replace(config, backend="torch"))
    if config.threads and decision.device == "cpu":
        torch.set_num_threads(config.threads)
    options: dict[str, Any] = {"local_files_only": not config.allow_download or Path(source).exists()}
    dtype = torch.bfloat16 if decision.precision == "bf16" else torch.float32
    try:
        with quiet_transformers():
            settings = transformers.AutoConfig.from_pretrained(source, **options)
            multimodal = type(settings) in transformers.AutoModelForImageTextToText._model_mapping
            kind = transformers.AutoModelForImageTextToText if multimodal else transformers.AutoModelForCausalLM
            reader = transformers.AutoProcessor if multimodal else transformers.AutoTokenizer
            model = kind.from_pretrained(source, dtype=dtype, **options).to(decision.device).eval()
            return model, reader.from_pretrained(source, **options)
    except OSError as error:
        raise NotFound(
            f"model {source!r} is neither a local path nor in the local hub cache ({error}); "
            "set models.reranker_device.allow_download to fetch it"
        ) from error
    except (ValueError, TypeError, KeyError, ImportError) as error:
        raise InvalidInput(f"model {source!r} cannot be opened as a language model: {error}") from error


def _fingerprint(model: Any, tokenizer: Any) -> str:
    model.tokenizer = tokenizer
    return model_fingerprint(model)
