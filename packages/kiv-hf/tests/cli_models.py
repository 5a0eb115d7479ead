"""Tiny models in folders, with a tokenizer of characters: what the command line needs to run in a second."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, MambaConfig, PreTrainedTokenizerFast, T5Config

if TYPE_CHECKING:
    from pathlib import Path

CHARACTERS = [chr(code) for code in range(32, 127)] + ["\n"]
NATIVE_TOKENS = 512
CHAT_TEMPLATE = (
    "{% for m in messages %}<u>{{ m['content'] }}</u>{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)


def tokenizer(chat: bool = False) -> PreTrainedTokenizerFast:
    """Return a token for each printable character; "<e>" ends an answer."""
    vocabulary = {token: i for i, token in enumerate(["<e>", "<?>", *CHARACTERS])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<?>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    made = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<e>", unk_token="<?>")
    made.chat_template = CHAT_TEMPLATE if chat else None
    return made


def save_llama(folder: Path, chat: bool = False) -> Path:
    """Save a random Llama of 2 layers, 2 KV heads of width 8."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2 + len(CHARACTERS),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=NATIVE_TOKENS,
        bos_token_id=None,
        eos_token_id=0,
        dtype="float32",
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer(chat).save_pretrained(folder)
    return folder


def save_unservable(folder: Path, kind: str) -> Path:
    """Save the configuration, nothing else, of a model that KIV cannot serve."""
    configs = {"encoder-decoder": T5Config(), "no attention": MambaConfig(num_hidden_layers=2)}
    configs[kind].save_pretrained(folder)
    return folder
