"""What a recipe says: frozen dataclasses, filled from TOML; every job adds its own section."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from chamfer.models.networks.transformer import Attention


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the groups are, which of them, and how candidates are drawn from a pool.

    groups and documents are Parquet files (chamfer.models.training.data.groups). `shares` says which share of a
    source's groups is taken, all of those that it does not name; 0 leaves a source out.
    A draw takes one positive and `negatives` others from the pool's negatives at ranks first..last-1; a query comes
    `epochs` times, each time with another draw. `limit` keeps that many groups (0: all), drawn by the seed.
    states names a folder of token vectors that are there already: SOURCE.npz with doc_ids, tokens, offsets, query_ids,
    q_tokens, q_offsets of the encoder `mini`; a head over the features `mini` and `words` then needs no forward pass.
    Measures before and after are taken on `held_out` groups of split dev, over their first held_out_depth candidates.
    """

    groups: Path
    documents: Path
    states: Path | None = None
    shares: dict[str, float] = field(default_factory=dict)
    negatives: int = 5
    first: int = 0
    last: int = 50
    epochs: int = 1
    limit: int = 0
    held_out: int = 100
    held_out_depth: int = 20


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """The loop. batch counts groups a step and process; rates are peak learning rates, warm-up then linear decay.

    micro_tokens bounds the padded tokens of one forward pass inside a step. save_every counts steps (0: a tenth of
    all). stop ends the run after that many steps of its schedule (0: at its end). precision bf16 is autocast. threads
    0 leaves the number to torch. seed draws candidates, order, initial weights and dropout.
    """

    batch: int = 8
    rate: float = 5e-4
    head_rate: float = 1e-3
    warmup: float = 0.06
    weight_decay: float = 0.01
    clip: float = 1.0
    accumulate: int = 1
    micro_tokens: int = 8192
    precision: Literal["fp32", "bf16"] = "bf16"
    save_every: int = 0
    stop: int = 0
    threads: int = 0
    seed: int = 42


TARGETS = (
    "query",
    "key",
    "value",
    "dense",
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
)


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """LoRA by PEFT (arXiv 2106.09685): rank 0 leaves the backbone frozen. Layers below `first_layer` stay frozen.

    targets are the last parts of layers' names; by default the attention and feed-forward layers of BERT and of Llama,
    Qwen and their kin.
    """

    rank: int = 0
    alpha: int = 64
    dropout: float = 0.0
    first_layer: int = 0
    targets: tuple[str, ...] = TARGETS

    @property
    def scale(self) -> float:
        """What the product of both factors is multiplied by; 0 without an adapter."""
        return self.alpha / self.rank if self.rank else 0.0


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What every job has. `out` is the folder of the finished model, `backbone` mini or a local folder.

    features are what the head reads of every token (chamfer.models.networks.transformer). attention "bidirectional"
    lets every token of a decoder see all others, in training and when the model serves (KaLM-Embedding-V2, arXiv
    2506.20923). start names a finished model of the same head and rank to go on from (a second stage); layers that its
    adapter leaves alone begin at no change. served_query_tokens and served_document_tokens are the limits of the
    finished model (0: those that it is trained with): shorter texts train faster.
    """

    job: str
    out: Path
    data: DataConfig
    backbone: str = "mini"
    features: tuple[str, ...] = ("last",)
    attention: Attention = "own"
    start: Path | None = None
    query_tokens: int = 64
    document_tokens: int = 192
    served_query_tokens: int = 0
    served_document_tokens: int = 0
    fit: FitConfig = field(default_factory=FitConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
