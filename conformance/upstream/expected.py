"""The classes, and what KIV refuses of their calls: every refusal that is listed must come, and no other may."""

from __future__ import annotations

from .shapes import SHAPES

CLASSES = (
    "LlamaForCausalLM", "MistralForCausalLM", "MixtralForCausalLM", "Qwen3MoeForCausalLM", "Phi3ForCausalLM",
    "GPT2LMHeadModel", "GPTNeoXForCausalLM", "OPTForCausalLM", "StableLmForCausalLM", "CohereForCausalLM",
    "Olmo2ForCausalLM", "Glm4ForCausalLM",
    # layers with windows or chunks, softcap, sinks
    "Gemma2ForCausalLM", "Cohere2ForCausalLM", "Llama4ForCausalLM", "GptOssForCausalLM",
    # latents, differences of two attentions, hybrids
    "DeepseekV3ForCausalLM", "DiffLlamaForCausalLM", "Qwen3NextForCausalLM", "FalconH1ForCausalLM", "JambaForCausalLM",
    # code of their own
    "BloomForCausalLM", "FalconForCausalLM", "GPTJForCausalLM",
    # text beside something else
    "LlavaForConditionalGeneration", "Qwen2VLForConditionalGeneration", "PaliGemmaForConditionalGeneration",
    "BartForConditionalGeneration", "M2M100ForConditionalGeneration", "T5ForConditionalGeneration",
)  # fmt: skip
"""Of each family; whisper and musicgen are not here, whose `generate` is their own."""

SHORT = (
    "LlamaForCausalLM", "Gemma2ForCausalLM", "DeepseekV3ForCausalLM", "BartForConditionalGeneration",
    "T5ForConditionalGeneration",
)  # fmt: skip

_EMBEDDINGS = ("embeddings", "embeddings, beams", "embeddings, left padding", "embeddings, continued")
_UNCUT = "transformers hands each chunk of a decoder's text the mask of the whole text"


def _all_but(names: tuple[str, ...], why: str) -> dict[str, str]:
    return {name: why for name in SHAPES if name not in names}


REFUSALS: dict[str, dict[str, str]] = {
    "PaliGemmaForConditionalGeneration": _all_but(
        ("no cache", "no prompt", *_EMBEDDINGS), "its prompt attends in both directions"
    ),
    "BartForConditionalGeneration": {"a long prefill in chunks": _UNCUT},
    "M2M100ForConditionalGeneration": {"a long prefill in chunks": _UNCUT},
    "T5ForConditionalGeneration": _all_but(
        ("no cache", "all logits kept", "embeddings, continued"), "every logit carries a learned bias of the distance"
    ),
}
"""Class -> shape -> why."""
