"""Small randomly initialised chat models of the real classes: the code path is real, the scores are not.

What they answer has no meaning; tests compare it with the same computation written out plainly.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
    "{% if p.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ p.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"]
SPECIALS += ["<|image_pad|>", "<|video_pad|>"]
WORDS = "yes no Yes No True False true false Query Document Candidate answer the fox tail crow pitcher number"


def _tokenizer() -> Any:
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    texts = [*(WORDS.split() * 3), *(f" {word}" for word in WORDS.split() * 3)]
    made.train_from_iterator(texts, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=TEMPLATE
    )


_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 4096,
    "initializer_range": 0.4,
}


def tiny_text_judge(folder: Path) -> Path:
    """Qwen3ForCausalLM of two layers and 32 dimensions."""
    import torch
    import transformers

    torch.manual_seed(0)
    tokenizer = _tokenizer()
    settings = transformers.Qwen3Config(vocab_size=len(tokenizer), **_SIZES)
    transformers.Qwen3ForCausalLM(settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_llava_judge(folder: Path) -> Path:
    """LlavaForConditionalGeneration over CLIP vision and Qwen3, saved with its processor."""
    import torch
    import transformers

    torch.manual_seed(0)
    tokenizer = _tokenizer()
    image_token = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    vision = transformers.CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8
    )
    settings = transformers.LlavaConfig(
        vision_config=vision,
        text_config=transformers.Qwen3Config(vocab_size=len(tokenizer), **_SIZES),
        image_token_index=image_token,
    )
    torch.manual_seed(1)
    transformers.LlavaForConditionalGeneration(settings).save_pretrained(folder)
    size = {"height": 32, "width": 32}
    transformers.LlavaProcessor(
        image_processor=transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=size),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
        image_token="<|image_pad|>",
        num_additional_image_tokens=1,
    ).save_pretrained(folder)
    return folder


def tiny_qwen3_vl() -> tuple[Any, Any]:
    """Qwen3VLForConditionalGeneration of two layers in each tower, and Qwen3VLProcessor.

    The processor's constructor asks for a reader of videos, which needs torchvision; images go without.
    """
    import torch
    import transformers

    torch.manual_seed(0)
    tokenizer = _tokenizer()
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in SPECIALS}
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 4,
        "out_hidden_size": 32,
        "deepstack_visual_indexes": [0],
        "num_position_embeddings": 256,
        "initializer_range": 0.4,
    }
    settings = transformers.Qwen3VLConfig(
        text_config={**_SIZES, "vocab_size": len(tokenizer), "rope_parameters": rope},
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )

    class Processor(transformers.Qwen3VLProcessor):
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            return type(argument)

    size = {"shortest_edge": 32 * 32, "longest_edge": 128 * 128}
    reader = transformers.Qwen2VLImageProcessorPil(patch_size=16, size=size)
    processor = Processor(image_processor=reader, tokenizer=tokenizer, chat_template=TEMPLATE)
    return transformers.Qwen3VLForConditionalGeneration(settings).eval(), processor


def picture(seed: int, width: int = 64, height: int = 48) -> bytes:
    """A PNG of noise."""
    import numpy as np
    from PIL import Image

    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
