"""Tiny randomly initialised models, saved as sentence-transformers saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(60)), "query", "passage", ":"]


def tiny_transformer(folder: Path, head: str = "BertModel", **config: Any) -> Path:
    """A BERT of two layers and 32 dimensions with a word vocabulary, saved in `folder`."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    torch.manual_seed(0)
    settings = transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=48,
        initializer_range=0.5,
        **config,
    )
    getattr(transformers, head)(settings).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    transformers.BertTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=48,
        **{f"{n}_token": f"[{n.upper()}]" for n in ("pad", "unk", "cls", "sep", "mask")},
    ).save_pretrained(folder)
    return folder


def tiny_splade(folder: Path) -> Path:
    """A SPLADE of random weights: a masked language model and SpladePooling."""
    from sentence_transformers import SparseEncoder

    model = SparseEncoder(str(tiny_transformer(folder / "bert", "BertForMaskedLM")), device="cpu")
    model.save(str(folder / "model"))
    return folder / "model"


def tiny_inference_free(folder: Path, idf: Any) -> Path:
    """The same for documents; queries are encoded through a table `idf` f32 [words] alone (a Router)."""
    import torch
    from sentence_transformers import SparseEncoder
    from sentence_transformers.base.modules import Router
    from sentence_transformers.sparse_encoder.modules import MLMTransformer, SparseStaticEmbedding, SpladePooling

    network = MLMTransformer(str(tiny_transformer(folder / "bert", "BertForMaskedLM")))
    table = SparseStaticEmbedding(network.tokenizer, torch.from_numpy(idf.copy()), frozen=True)
    router = Router.for_query_document([table], [network, SpladePooling("max")])
    SparseEncoder(modules=[router], device="cpu").save(str(folder / "model"))
    return folder / "model"
