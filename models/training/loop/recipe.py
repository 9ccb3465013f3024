"""Recipes: frozen dataclasses filled from TOML. Every job adds keys of its own to `Recipe`.

Keys carry the names of the libraries people know (transformers' Trainer, PEFT, sentence-transformers) where those have
one. RENAMED lists the names that keys had before, so that an old recipe fails with the name to use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_type_hints

from chamfer.core.errors import InvalidInput
from chamfer.models.networks.features import LAST, MINI, Attention


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The training data, which part of it is used, and how candidates are sampled.

    groups, documents   Parquet files (models/training/data/groups.py)
    token_vectors       folder of precomputed token vectors of the encoder `mini`, so that a head over the features
                        `mini` and `words` needs no forward pass: SOURCE.npz with doc_ids, tokens, offsets, query_ids,
                        q_tokens, q_offsets
    source_fractions    fraction of each source's training groups to use, 1 for sources not named; 0 also leaves the
                        source out of the evaluation
    num_negatives       negatives sampled for one positive
    range_min, range_max   they are sampled from the group's negatives[range_min:range_max], in the order of the pool
                        (as in sentence_transformers.util.mine_hard_negatives)
    epochs              how often every query occurs, each time with another sample
    max_train_groups    upper bound on the training groups, drawn by the seed; 0: all
    max_eval_groups     upper bound on the groups of split dev that are measured before and after training
    eval_depth          how many of their candidates are ranked
    """

    groups: Path
    documents: Path
    token_vectors: Path | None = None
    source_fractions: dict[str, float] = field(default_factory=dict)
    num_negatives: int = 5
    range_min: int = 0
    range_max: int = 50
    epochs: int = 1
    max_train_groups: int = 0
    max_eval_groups: int = 100
    eval_depth: int = 20

    RENAMED: ClassVar[dict[str, str]] = {
        "states": "token_vectors",
        "shares": "source_fractions",
        "negatives": "num_negatives",
        "first": "range_min",
        "last": "range_max",
        "limit": "max_train_groups",
        "held_out": "max_eval_groups",
        "held_out_depth": "eval_depth",
    }


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """The training loop.

    batch_size          groups in one step of one process (Trainer: per_device_train_batch_size)
    learning_rate       peak learning rate of the backbone, after linear warm-up; it then decays linearly to 0
    head_learning_rate  the same of everything else that is trained
    warmup_ratio        fraction of the steps that warm up
    micro_batch_tokens  upper bound on the padded tokens of one forward pass inside a step
    precision           bf16 is autocast
    save_steps          steps between checkpoints; 0: a tenth of all steps
    max_steps           ends the run after this many steps of its unchanged schedule; 0: at the end of the schedule
    threads             CPU threads; 0 leaves the number to torch
    seed                draws candidates, their order, initial weights and dropout
    """

    batch_size: int = 8
    learning_rate: float = 5e-4
    head_learning_rate: float = 1e-3
    warmup_ratio: float = 0.06
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    gradient_accumulation_steps: int = 1
    micro_batch_tokens: int = 8192
    precision: Literal["fp32", "bf16"] = "bf16"
    save_steps: int = 0
    max_steps: int = 0
    threads: int = 0
    seed: int = 42

    RENAMED: ClassVar[dict[str, str]] = {
        "batch": "batch_size",
        "rate": "learning_rate",
        "head_rate": "head_learning_rate",
        "warmup": "warmup_ratio",
        "clip": "max_grad_norm",
        "accumulate": "gradient_accumulation_steps",
        "micro_tokens": "micro_batch_tokens",
        "save_every": "save_steps",
        "stop": "max_steps",
    }


LINEAR_LAYERS = (
    *("query", "key", "value", "dense"),
    *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
)


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """LoRA (arXiv 2106.09685) by PEFT.

    rank, alpha, dropout   rank 0 trains no adapter and leaves the backbone frozen
    first_layer            layers below this one stay frozen
    target_modules         last parts of the names of the linear layers to adapt; by default the attention and
                           feed-forward layers of BERT and of Llama, Qwen and similar models
    """

    rank: int = 0
    alpha: int = 64
    dropout: float = 0.0
    first_layer: int = 0
    target_modules: tuple[str, ...] = LINEAR_LAYERS

    RENAMED: ClassVar[dict[str, str]] = {"targets": "target_modules"}

    @property
    def scale(self) -> float:
        """The factor of the product of both low-rank matrices; 0 without an adapter."""
        return self.alpha / self.rank if self.rank else 0.0


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The keys of every job.

    out             folder of the finished model
    backbone        mini or a local folder
    features        what the head reads of every token (models/networks/features.py)
    attention       "bidirectional" lets every token of a decoder attend to all others, in training and in service
                    (KaLM-Embedding-V2, arXiv 2506.20923)
    init_from       folder of a finished model of the same head and rank, from which training continues (a second
                    stage); layers that its adapter does not change start unchanged
    query_tokens, document_tokens                 token limits in training
    served_query_tokens, served_document_tokens   token limits of the finished model; 0: those of training. Shorter
                                                  texts train faster.
    """

    job: str
    out: Path
    data: DataConfig
    backbone: str = MINI
    features: tuple[str, ...] = (LAST,)
    attention: Attention = "own"
    init_from: Path | None = None
    query_tokens: int = 64
    document_tokens: int = 192
    served_query_tokens: int = 0
    served_document_tokens: int = 0
    fit: FitConfig = field(default_factory=FitConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)

    RENAMED: ClassVar[dict[str, str]] = {"start": "init_from"}


def refuse_renamed_keys(recipe: type[Any], tree: Mapping[str, Any], prefix: str = "") -> None:
    """InvalidInput for the first key of a recipe's TOML that had its name changed; the message has the present name."""
    hints = get_type_hints(recipe)
    present = {f.name for f in fields(recipe)}
    renamed: Mapping[str, str] = getattr(recipe, "RENAMED", {})
    for key, value in tree.items():
        if key not in present and key in renamed:
            raise InvalidInput(f"the recipe key {prefix + key!r} is now called {prefix + renamed[key]!r}")
        if is_dataclass(hints.get(key)) and isinstance(value, Mapping):
            refuse_renamed_keys(hints[key], value, f"{prefix}{key}.")
