"""Language models as judges, of texts and of images: the log-odds of two answers, read from one forward pass.

`yes_no:NAME` asks as Qwen3-Reranker and Qwen3-VL-Reranker were trained, `true_false:NAME` asks any chat model without
training (MM-Embed, arXiv 2411.02571), `unime:NAME` asks as UniME-V2 does (models/rerankers/listwise.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from chamfer.core.artifact import digest_of
from chamfer.core.errors import InvalidInput, NotFound
from chamfer.core.protocols import Pair, ScoreKind
from chamfer.core.types import F32, I32, Document, Query
from chamfer.models.backends.backend import DeviceConfig, decide, quiet_transformers
from chamfer.models.backends.token_batches import clean, length_groups
from chamfer.models.encoders.sentence_transformers import fingerprint
from chamfer.models.networks.checkpoint import DESCRIPTION, describe, parts_of
from chamfer.models.networks.transformer import fold
from chamfer.models.rerankers.images import open_image
from chamfer.models.rerankers.pair_scores import CHARACTERS_PER_TOKEN, refuse_images, scores_of
from chamfer.models.rerankers.prompts import Message, Question, as_text, images_of, pair_messages

if TYPE_CHECKING:
    import torch

LANGUAGE_KINDS = ("reranker", "universal")
MAX_TEXT_TOKENS = 4096
MAX_IMAGE_SIDE = 1024
PIXELS_PER_TOKEN = 28 * 28  # of the Qwen family; others are charged by the same measure


@dataclass(frozen=True, slots=True)
class Prompt:
    """A rendered conversation with its images, and about how many tokens it will be."""

    text: str
    images: list[Any]
    tokens: int


class LanguageModel:
    """A chat model and its processor: prompts to the logits of the next token. Made by `load_language_model`."""

    def __init__(self, name: str, model: Any, processor: Any, batch_tokens: int) -> None:
        self.name = name
        self.reads_images = hasattr(processor, "image_processor")
        self.module = model
        self._processor = processor
        self._tokenizer = getattr(processor, "tokenizer", processor)
        self._tokenizer.padding_side = "left"  # the last position is then the last token of each
        self._batch_tokens = batch_tokens
        if not getattr(processor, "chat_template", None) and not self._tokenizer.chat_template:
            raise InvalidInput(f"model {name} has no chat template: its prompts cannot be laid out as it was trained")
        self.fingerprint = digest_of(_fingerprint(model, self._tokenizer), self._template())

    def _template(self) -> str:
        return str(getattr(self._processor, "chat_template", None) or self._tokenizer.chat_template)

    def prompt(self, messages: list[Message], answer_start: str) -> Prompt:
        """The conversation as the model's own template lays it out, the answer begun."""
        images = [open_image(image, MAX_IMAGE_SIDE) for image in images_of(messages)]
        laid_out = messages if self.reads_images else as_text(messages)
        text = self._processor.apply_chat_template(laid_out, tokenize=False, add_generation_prompt=True) + answer_start
        tokens = len(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        pixels = sum(image.width * image.height for image in images)
        return Prompt(text, images, tokens + pixels // PIXELS_PER_TOKEN)

    def shortened(self, text: str, tokens: int = MAX_TEXT_TOKENS) -> str:
        """The text up to its first `tokens` tokens, so that what stands behind it in a prompt is never cut off."""
        kept = clean(text[: tokens * CHARACTERS_PER_TOKEN])
        encoded = self._tokenizer(kept, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        offsets = encoded["offset_mapping"]
        return kept if len(offsets) <= tokens else kept[: offsets[tokens - 1][1]]

    def lengths(self, texts: Sequence[str]) -> I32:
        """Tokens i32 [N] of each text alone, before it is cut."""
        encoded = (
            self._tokenizer([clean(text) for text in texts], add_special_tokens=False, verbose=False)["input_ids"]
            if texts
            else []
        )
        return np.array([len(ids) for ids in encoded], dtype=np.int32)

    def answer_ids(self, spellings: Sequence[str]) -> list[int]:
        """The tokens of those spellings that are one token; InvalidInput if none is."""
        encoded = [self._tokenizer(s, add_special_tokens=False)["input_ids"] for s in spellings]
        found = sorted({ids[0] for ids in encoded if len(ids) == 1})
        if not found:
            raise InvalidInput(f"none of {list(spellings)} is one token of model {self.name}; it cannot answer so")
        return found

    def next_logits(self, prompts: Sequence[Prompt], ids: Sequence[int]) -> F32:
        """Logits f32 [n, len(ids)] of the given tokens as the next one. Batched by length under the token budget."""
        import torch

        out = np.zeros((len(prompts), len(ids)), dtype=np.float32)
        with torch.inference_mode():
            for rows, inputs in self.batches(prompts, self._batch_tokens):
                out[rows] = self.logits(inputs)[:, list(ids)].cpu().numpy()
        return out

    def batches(self, prompts: Sequence[Prompt], budget: int) -> Iterator[tuple[list[int], dict[str, Any]]]:
        """(rows, the model's inputs) of prompts of like length, at most `budget` tokens."""
        lengths = [prompt.tokens for prompt in prompts]
        for _, rows in length_groups(lengths, limit=max(lengths, default=1), budget=budget):
            yield rows, self._inputs([prompts[row] for row in rows])

    def logits(self, inputs: dict[str, Any]) -> torch.Tensor:
        """Logits f32 [B, V] of the next token; with gradient where one is asked for."""
        out: torch.Tensor = self.module(**inputs, logits_to_keep=1, use_cache=False).logits
        return out[:, -1].float()

    def last_states(self, inputs: dict[str, Any]) -> torch.Tensor:
        """Hidden states f32 [B, H] of the last token, which has seen the whole prompt."""
        out: torch.Tensor = self.module.base_model(**inputs, use_cache=False).last_hidden_state
        return out[:, -1].float()

    def _inputs(self, prompts: list[Prompt]) -> dict[str, Any]:
        texts = [prompt.text for prompt in prompts]
        options: dict[str, Any] = {"padding": True, "return_tensors": "pt"}
        if not self.reads_images:
            made = self._tokenizer(texts, add_special_tokens=False, **options)
        else:
            images = [image for prompt in prompts for image in prompt.images]
            made = self._processor(text=texts, images=images or None, **options)
        return {name: tensor.to(self.module.device) for name, tensor in made.items()}


class GenerativeReranker:
    """Asks one question about each pair: log p(positive) - log p(negative) of the first token of the answer."""

    score_kind: ScoreKind = "logit"

    def __init__(self, name: str, model: LanguageModel, question: Question) -> None:
        self.name = name
        self.reads_images = model.reads_images
        self.fingerprint = digest_of(model.fingerprint, question.digest)
        self.model = model
        self._question = question
        positive, negative = model.answer_ids(question.positive), model.answer_ids(question.negative)
        if both := set(positive) & set(negative):
            raise InvalidInput(f"model {name} has the tokens {sorted(both)} for both answers")
        self._ids = [*positive, *negative]
        self._n_positive = len(positive)

    def score(self, query: Query, documents: Sequence[Document]) -> F32:
        """See chamfer.core.protocols.Reranker."""
        return scores_of(self, query, documents)

    def score_pairs(self, pairs: Sequence[Pair]) -> F32:
        """See chamfer.core.protocols.PairReranker. Texts are cut to MAX_TEXT_TOKENS, images shrunk to
        MAX_IMAGE_SIDE.
        """
        if not self.reads_images:
            refuse_images(self.name, pairs)
        prompts = [self._prompt(query, document) for query, document in pairs]
        logits = self.model.next_logits(prompts, self._ids)
        return log_odds(logits[:, : self._n_positive], logits[:, self._n_positive :])

    def _prompt(self, query: Query, document: Document) -> Prompt:
        messages = pair_messages(
            self._question, shortened_query(self.model, query), shortened_document(self.model, document)
        )
        return self.model.prompt(messages, self._question.answer_start)


def log_odds(positive: F32, negative: F32) -> F32:
    """log sum exp(positive) - log sum exp(negative), f32 [n], of logits f32 [n, P] and [n, M].

    Its sigmoid is p(positive) / (p(positive) + p(negative)); a constant added to all logits changes nothing.
    """
    out: F32 = np.logaddexp.reduce(positive, axis=1) - np.logaddexp.reduce(negative, axis=1)
    return out


def shortened_query(model: LanguageModel, query: Query, tokens: int = MAX_TEXT_TOKENS) -> Query:
    """The query with its text cut, and without an image the model cannot see."""
    return replace(query, text=model.shortened(query.text, tokens), image=query.image if model.reads_images else None)


def shortened_document(model: LanguageModel, document: Document, tokens: int = MAX_TEXT_TOKENS) -> Document:
    """The document as one text, cut to `tokens`, and without an image the model cannot see."""
    image = document.image if model.reads_images else None
    return Document(document.doc_id, model.shortened(document.content, tokens), image=image)


def load_language_model(name: str, config: DeviceConfig) -> LanguageModel:
    """The chat model of this hub name or local path, with its image processor if it has one.

    A folder that `chamfer train` wrote is its backbone with the learnt changes added to the weights.

    Runs through torch in bf16 on CUDA, else in fp32 unless models.reranker_device.precision is bf16.
    """
    folder = Path(name)
    if (folder / DESCRIPTION).is_file():
        description = describe(folder)
        if description.kind not in LANGUAGE_KINDS:
            raise InvalidInput(f"{folder} holds a {description.kind} model, expected one of {LANGUAGE_KINDS}")
        changes = parts_of(folder, description)[1]
        return _open(name, description.backbone, config, lambda model: fold(model, changes))
    return _open(name, name, config)


def _open(name: str, source: str, config: DeviceConfig, change: Callable[[Any], None] | None = None) -> LanguageModel:
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
            sees = type(settings) in transformers.AutoModelForImageTextToText._model_mapping
            kind = transformers.AutoModelForImageTextToText if sees else transformers.AutoModelForCausalLM
            reader = transformers.AutoProcessor if sees else transformers.AutoTokenizer
            model = kind.from_pretrained(source, dtype=dtype, **options).to(decision.device).eval()
            processor = reader.from_pretrained(source, **options)
    except OSError as error:
        raise NotFound(
            f"model {source!r} is neither a local path nor in the local hub cache ({error}); "
            "set models.reranker_device.allow_download to fetch it"
        ) from error
    except (ValueError, TypeError, KeyError, ImportError) as error:
        raise InvalidInput(f"model {source!r} cannot be opened as a language model: {error}") from error
    if change is not None:
        change(model)
    return LanguageModel(name, model, processor, config.batch_tokens)


def _fingerprint(model: Any, tokenizer: Any) -> str:
    model.tokenizer = tokenizer
    return fingerprint(model)
