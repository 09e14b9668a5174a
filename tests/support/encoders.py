"""Text encoders and tokenizers of real classes at tiny sizes, with random weights, as the pipelines' parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.tiny import byte_characters, byte_level

LENGTH = 12  # tokens
WIDTH = 16


def clip(folder: Path, *, projected: bool = False, width: int = WIDTH, act: str = "quick_gelu") -> tuple[Any, Any]:
    """(tokenizer, encoder); projected: the class with a text projection."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    config = CLIPTextConfig(
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=width,
        vocab_size=514,
        max_position_embeddings=LENGTH,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
        hidden_act=act,
    )
    encoder = (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)
    return byte_level(folder, CLIPTokenizer), encoder


def t5(folder: Path, *, width: int = WIDTH) -> tuple[Any, Any]:
    """(tokenizer, encoder) over words of a small vocabulary, as T5's: padding 0, end 1, unknown 2."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    words = ["<pad>", "</s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ", *" .,!0123456789"]
    own = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    own.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    own.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=own, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=LENGTH
    )
    config = T5Config(
        vocab_size=len(words), d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=2, feed_forward_proj="gated-gelu"
    )
    return tokenizer, T5EncoderModel(config)


def gemma(*, width: int = WIDTH, layers: int = 1) -> tuple[Any, Any]:
    """(tokenizer, encoder): Gemma 2, whose tokens are characters."""
    from transformers import Gemma2Config, Gemma2Model, GemmaTokenizer

    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    characters = ["\u2581", "\n", *map(chr, range(33, 127))]  # the first stands for a space
    vocab = {token: number for number, token in enumerate([*special, *characters])}
    config = Gemma2Config(
        vocab_size=len(vocab),
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        query_pre_attn_scalar=8,
        max_position_embeddings=2048,
    )
    return GemmaTokenizer(vocab, add_bos_token=True), Gemma2Model(config)


CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def qwen3(*, width: int = WIDTH, layers: int = 3, causal: bool = False) -> tuple[Any, Any]:
    """(tokenizer, encoder) with a chat template; causal: the class with a head over the vocabulary."""
    from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3ForCausalLM, Qwen3Model

    words = [*byte_characters(), "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Qwen2Tokenizer(vocab={word: number for number, word in enumerate(words)}, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHAT
    config = Qwen3Config(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=512,
    )
    return tokenizer, (Qwen3ForCausalLM if causal else Qwen3Model)(config)


def qwen2_vl(*, width: int = WIDTH) -> tuple[Any, Any]:
    """(tokenizer, encoder): Qwen 2.5 VL, of which text encoders use the language model alone."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

    words = [*byte_characters(), "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Qwen2Tokenizer(vocab={word: number for number, word in enumerate(words)}, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    text = {
        "vocab_size": len(words),
        "hidden_size": width,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 2048,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]},
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), words.index("<|endoftext|>")),
    }
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": width}
    return tokenizer, Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision))
