"""A saved context belongs to one model: what counts as the same, what as another, and what the error says."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hf_models import TINY_MODELS, VOCABULARY, TinyModel, in_parts, pair
from kiv_hf import use_kiv
from kiv_hf.contexts.provenance import check_provenance, provenance_of
from kiv_reference.errors import KIVMismatchError, KIVUsageError
from tokenizers import Tokenizer, models
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    BartForConditionalGeneration,
    BloomConfig,
    BloomForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def llama_with(**settings: Any) -> Any:
    return pair(LlamaConfig, LlamaForCausalLM, num_hidden_layers=2, **settings).stock


def differing(one: dict[str, str], other: dict[str, str]) -> set[str]:
    assert one.keys() == other.keys()
    return {field for field in one if one[field] != other[field]}


def words(*more: str) -> PreTrainedTokenizerFast:
    vocabulary = {word: number for number, word in enumerate((*(f"w{i}" for i in range(VOCABULARY)), *more))}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="w0")))


class TestTheSame:
    def test_saved_and_loaded_from_another_folder(self, llama: TinyModel, tmp_path: Path) -> None:
        before = provenance_of(llama.stock)
        for name in ("one", "two"):
            llama.stock.save_pretrained(tmp_path / name)
            loaded = AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=torch.float64)
            loaded.config.pad_token_id = 5
            assert provenance_of(loaded) == before
            assert provenance_of(loaded.train()) == before

    def test_in_another_process_with_other_threads(self, llama: TinyModel, tmp_path: Path) -> None:
        llama.stock.save_pretrained(tmp_path)
        code = (
            "import json, sys, torch; torch.set_num_threads(3)\n"
            "from transformers import LlamaForCausalLM\n"
            "from kiv_hf.contexts.provenance import provenance_of\n"
            "model = LlamaForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float64)\n"
            "print(json.dumps(provenance_of(model)))"
        )
        said = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
        assert json.loads(said.stdout.splitlines()[-1]) == provenance_of(llama.stock)

    def test_with_any_attention_and_compiled(self, tiny: TinyModel) -> None:
        before = provenance_of(tiny.stock)
        assert provenance_of(tiny.kiv) == before
        compiled: Any = torch.compile(tiny.kiv, backend="eager")
        assert provenance_of(compiled) == before
        layers = tiny.kiv.model.layers
        layers[0] = torch.compile(layers[0], backend="eager")
        assert provenance_of(tiny.kiv) == before

    def test_with_attention_classes_replaced(self) -> None:
        model = BloomForCausalLM(BloomConfig(vocab_size=50, hidden_size=16, n_layer=2, n_head=2))
        before = provenance_of(model)
        assert provenance_of(use_kiv(model)) == before

    def test_divided_by_a_device_map(self, llama: TinyModel, tmp_path: Path) -> None:
        before = provenance_of(llama.stock)
        model = in_parts(llama.stock, tmp_path)
        assert provenance_of(model) == before
        model(llama.ids)
        assert provenance_of(model) == before

    def test_loaded_with_tied_weights_on_disk(self, tmp_path: Path) -> None:
        pytest.importorskip("accelerate")
        model = llama_with(tie_word_embeddings=True)
        before = provenance_of(model)
        model.save_pretrained(tmp_path)
        parts = {"model.embed_tokens": "disk", "model.layers": "disk", "model.norm": "disk", "lm_head": "disk"}
        parts["model.rotary_emb"] = "cpu"
        loaded = AutoModelForCausalLM.from_pretrained(
            tmp_path, dtype=torch.float64, device_map=parts, offload_folder=str(tmp_path / "parts")
        )
        assert loaded.model.embed_tokens.weight.is_meta
        assert provenance_of(loaded) == before

    def test_after_a_long_text_changed_the_factors(self) -> None:
        rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
        model = llama_with(max_position_embeddings=32, rope_parameters=rope)
        before, table = provenance_of(model), model.model.rotary_emb.inv_freq.clone()
        model(torch.ones(1, 64, dtype=torch.long))
        assert not torch.equal(model.model.rotary_emb.inv_freq, table)
        assert provenance_of(model) == before

    def test_encoder_and_decoder(self) -> None:
        config = BartConfig(
            vocab_size=50, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=32,
        )  # fmt: skip
        model: Any = BartForConditionalGeneration(config)
        before = provenance_of(model)
        with torch.no_grad():
            model.model.encoder.layers[0].fc1.weight[0, 0] += 1
        assert differing(before, provenance_of(model)) == {"weights"}


class TestAnother:
    @pytest.mark.parametrize(
        ("settings", "field"),
        [
            ({"num_key_value_heads": 4}, "config"),
            ({"rms_norm_eps": 1e-3}, "config"),
            ({"hidden_act": "gelu"}, "config"),
            ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, "rope"),
            ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "rope"),
        ],
    )
    def test_a_field_of_the_configuration(self, settings: dict[str, Any], field: str) -> None:
        before, now = provenance_of(llama_with()), provenance_of(llama_with(**settings))
        assert differing(before, now) - {"weights"} == {field}
        with pytest.raises(KIVMismatchError, match=rf"another {field} in .*{sorted(settings)[0]}"):
            check_provenance(before, now)

    def test_a_table_of_frequencies_in_half_precision(self, llama: TinyModel) -> None:
        before = provenance_of(llama.stock)
        now = provenance_of(llama.stock.to(torch.bfloat16).to(torch.float64))
        assert differing(before, now) == {"weights", "rope"}
        with pytest.raises(KIVMismatchError, match="another rope in frequencies"):
            check_provenance({"rope": before["rope"]}, {"rope": now["rope"]})

    def test_other_weights_of_the_same_shapes(self) -> None:
        config = LlamaConfig(vocab_size=20, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                             num_attention_heads=2)  # fmt: skip
        one, other = LlamaForCausalLM(config), LlamaForCausalLM(config)
        assert differing(provenance_of(one), provenance_of(other)) == {"weights"}

    @pytest.mark.parametrize("at", [(0, 0), (-1, -1), (0, 17)])
    def test_one_element(self, llama: TinyModel, at: tuple[int, int]) -> None:
        for weight in (llama.stock.lm_head.weight, llama.stock.model.layers[1].mlp.up_proj.weight):
            before = provenance_of(llama.stock)
            with torch.no_grad():
                weight[at] += 1
            assert differing(before, provenance_of(llama.stock)) == {"weights"}

    def test_another_dtype(self, llama: TinyModel) -> None:
        before = provenance_of(llama.stock)
        now = provenance_of(llama.stock.to(torch.float32))
        assert differing(before, now) >= {"dtype", "weights"}
        assert (before["dtype"], now["dtype"]) == ("float64", "float32")

    def test_swapped_layers(self, llama: TinyModel) -> None:
        before = provenance_of(llama.stock)
        layers = llama.stock.model.layers
        layers[0], layers[1] = layers[1], layers[0]
        assert differing(before, provenance_of(llama.stock)) == {"weights"}

    @pytest.mark.parametrize("change", ["token", "special", "template"])
    def test_a_tokenizer(self, llama: TinyModel, change: str) -> None:
        before = provenance_of(llama.stock, words())
        other = words("more") if change == "token" else words()
        if change == "special":
            other.add_special_tokens({"eos_token": "w5"})
        if change == "template":
            other.chat_template = "{{ messages }}"
        field = "chat template" if change == "template" else "tokenizer"
        now = provenance_of(llama.stock, other)
        assert differing(before, now) == {field}
        with pytest.raises(KIVMismatchError, match=rf"another {field} .* Load the tokenizer it was saved with"):
            check_provenance(before, now)

    def test_calls_leave_a_tokenizer_as_it_was(self, llama: TinyModel) -> None:
        tokenizer = words()
        tokenizer.add_special_tokens({"pad_token": "w1"})
        before = provenance_of(llama.stock, tokenizer)
        tokenizer(["w3", "w4"], padding="max_length", truncation=True, max_length=7)
        assert provenance_of(llama.stock, tokenizer) == before


class TestTheCheck:
    def test_the_same_passes(self, llama: TinyModel) -> None:
        with_words, without = provenance_of(llama.stock, words()), provenance_of(llama.stock)
        check_provenance(with_words, with_words)
        check_provenance(with_words, without)
        check_provenance(without, with_words)

    def test_what_it_says(self) -> None:
        with pytest.raises(KIVMismatchError) as refused:
            check_provenance({"weights": "3fa9" * 16}, {"weights": "77c0" * 16})
        assert str(refused.value) == (
            "A saved context serves the model that filled it; "
            "got other weights (saved 3fa93fa9…, this model 77c077c0…). "
            "Load the model it was saved with, or read the text again."
        )

    def test_a_field_that_one_side_does_not_have(self) -> None:
        for saved, now in (({}, {"dtype": "float32"}), ({"dtype": "float32"}, {})):
            with pytest.raises(KIVMismatchError, match=r"another dtype .*nothing"):
                check_provenance(saved, now)

    def test_frequencies_differ_by_a_last_bit(self, llama: TinyModel) -> None:
        now = provenance_of(llama.stock)
        rope = json.loads(now["rope"])
        rope["frequencies"] = [[one * (1 + 1e-7) for one in table] for table in rope["frequencies"]]
        check_provenance({**now, "rope": json.dumps(rope)}, now)

    def test_a_table_of_frequencies_that_is_missing(self, llama: TinyModel) -> None:
        now = provenance_of(llama.stock)
        rope = json.loads(now["rope"])
        for tables in ([], [[*rope["frequencies"][0], 1.0]], [*rope["frequencies"], [1.0]], "none"):
            saved = {**now, "rope": json.dumps({**rope, "frequencies": tables})}
            for pairs in ((saved, now), (now, saved)):
                with pytest.raises(KIVMismatchError, match="another rope in frequencies"):
                    check_provenance(*pairs)

    def test_no_model(self) -> None:
        with pytest.raises(KIVUsageError, match="got Linear"):
            provenance_of(torch.nn.Linear(2, 2))


def test_an_unreadable_tensor_is_named(llama: TinyModel) -> None:
    before = provenance_of(llama.stock)
    llama.stock.lm_head.to("meta")
    now = provenance_of(llama.stock)
    assert now["unread weights"] == "lm_head.weight"
    with pytest.raises(KIVMismatchError, match=r"other unread weights \(saved none, this model lm_head.weight\)"):
        check_provenance(before, now)


@pytest.mark.parametrize("make", TINY_MODELS.values(), ids=TINY_MODELS.keys())
def test_a_copy_is_the_same(make: Callable[[], TinyModel]) -> None:
    model = make().stock
    assert provenance_of(copy.deepcopy(model)) == provenance_of(model)
