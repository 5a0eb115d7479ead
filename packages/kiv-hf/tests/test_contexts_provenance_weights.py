"""The fingerprint of weights: what is read, how often, and what quantisation and adapters keep beside tensors."""

from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hf_models import TinyModel, in_parts
from kiv_hf.contexts import weight_samples, weights
from kiv_hf.contexts.model_facts import adapters_of, quantisation_of
from kiv_hf.contexts.provenance import provenance_of
from kiv_hf.contexts.weight_samples import PIECE_BYTES, PIECES, samples
from torch.testing._internal.two_tensor import TwoTensor
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of elements of the tensors that were read."""
    seen: list[int] = []

    def counted(tensor: torch.Tensor) -> bytes:
        seen.append(tensor.numel())
        return samples(tensor)

    monkeypatch.setattr(weight_samples, "samples", counted)
    return seen


class TestSamples:
    def test_a_small_tensor_is_read_whole(self) -> None:
        tensor = torch.arange(PIECES * PIECE_BYTES // 4, dtype=torch.float32)
        assert samples(tensor) == tensor.numpy().tobytes()

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.bfloat16, torch.float32, torch.float64,
                                       torch.complex64, torch.complex128, torch.float8_e4m3fn])  # fmt: skip
    def test_pieces_of_a_large_tensor(self, dtype: torch.dtype) -> None:
        tensor = (torch.arange(30011) % 251).to(torch.uint8).repeat(16)[: 30011 * dtype.itemsize]
        if dtype == torch.bool:
            tensor = tensor % 2
        every, piece = tensor.numpy().tobytes(), PIECE_BYTES // dtype.itemsize * dtype.itemsize
        step = (30011 - piece // dtype.itemsize) // (PIECES - 1) * dtype.itemsize
        starts = [number * step for number in range(PIECES - 1)] + [len(every) - piece]
        assert samples(tensor.view(dtype)) == b"".join(every[start : start + piece] for start in starts)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
    def test_it_does_not_matter_how_a_tensor_lies(self, dtype: torch.dtype) -> None:
        tensor = torch.randn(300, 70).to(dtype)
        transposed, part = tensor.T.contiguous().T, torch.cat([tensor, tensor], dim=1)[:, :70]
        assert not transposed.is_contiguous()
        assert samples(transposed) == samples(part) == samples(torch.cat([tensor, tensor])[300:]) == samples(tensor)

    def test_an_empty_tensor_and_a_number(self) -> None:
        assert samples(torch.empty(0, 3)) == b""
        assert samples(torch.tensor(2, dtype=torch.uint8)) == b"\2"


class TestReadOnce:
    def test_the_second_call_reads_nothing(self, llama: TinyModel, reads: list[int]) -> None:
        first = provenance_of(llama.stock)
        assert len(reads) == len(list(llama.stock.parameters()))
        reads.clear()
        llama.stock(llama.ids)
        compiled: Any = torch.compile(llama.stock)
        assert provenance_of(compiled) == first
        assert reads == []

    @pytest.mark.parametrize("how", ["in place", "data", "parameter", "loaded"])
    def test_what_changed_is_read_again(self, llama: TinyModel, reads: list[int], how: str) -> None:
        first = provenance_of(llama.stock)
        reads.clear()
        layer: Any = llama.stock.lm_head
        changed = layer.weight.detach() * 2
        if how == "in place":
            torch.nn.init.normal_(layer.weight)
        elif how == "data":
            layer.weight.data = changed
        elif how == "parameter":
            layer.weight = torch.nn.Parameter(changed)
        else:
            layer.load_state_dict({"weight": changed})
        assert provenance_of(llama.stock)["weights"] != first["weights"]
        assert reads == [changed.numel()]

    def test_a_tensor_at_the_address_of_another(self, llama: TinyModel) -> None:
        """The stamp of a tensor that is gone holds for no other, whatever lies there now."""
        layer: Any = llama.stock.lm_head
        first = provenance_of(llama.stock)["weights"]
        store = layer.weight.data
        store *= 2  # of which the parameter's version tells nothing
        layer.weight = torch.nn.Parameter(store)
        assert provenance_of(llama.stock)["weights"] != first

    def test_inference_tensors_are_read_each_time(self, reads: list[int]) -> None:
        config = LlamaConfig(
            vocab_size=20, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
        )
        with torch.inference_mode():
            model = LlamaForCausalLM(config)
        first = provenance_of(model)["weights"]
        with torch.inference_mode():
            model.lm_head.weight += 1
        reads.clear()
        assert provenance_of(model)["weights"] != first
        assert len(reads) == len(list(model.parameters()))

    def test_offloaded_weights_are_read_once(self, llama: TinyModel, tmp_path: Path, reads: list[int]) -> None:
        model = in_parts(llama.stock, tmp_path)
        first = provenance_of(model)
        reads.clear()
        model(llama.ids)
        assert provenance_of(model) == first
        assert reads == []

    def test_offloaded_weights_in_ram_that_change(self, llama: TinyModel, reads: list[int]) -> None:
        accelerate: Any = pytest.importorskip("accelerate")
        ram = {name: tensor.clone() for name, tensor in llama.stock.state_dict().items()}
        before = provenance_of(llama.stock)["weights"]
        model = accelerate.cpu_offload(llama.stock, torch.device("cpu"), state_dict=ram)
        assert model.lm_head.weight.is_meta
        assert provenance_of(model)["weights"] == before
        reads.clear()
        ram["lm_head.weight"] += 1
        assert provenance_of(model)["weights"] != before
        assert reads == [ram["lm_head.weight"].numel()]

    def test_nothing_is_kept_alive(self, llama: TinyModel) -> None:
        provenance_of(llama.stock)
        model, weight = weakref.ref(llama.stock), weakref.ref(llama.stock.lm_head.weight)
        count = len(weights._reads)
        del llama.stock
        gc.collect()
        assert model() is None
        assert weight() is None
        assert len(weights._reads) < count


def test_a_tensor_that_packs_others(llama: TinyModel) -> None:
    layer: Any = llama.stock.lm_head
    data = layer.weight.detach()
    found: list[str] = []
    for second in (data, data + 1):
        layer.weight = torch.nn.Parameter(TwoTensor(data, second), requires_grad=False)
        found.append(provenance_of(llama.stock)["weights"])
    assert found[0] != found[1]


class Adapted(torch.nn.Module):
    """What PEFT keeps of a layer with LoRA, and how it merges: through ``data``, which leaves the version as it was."""

    def __init__(self, layer: torch.nn.Linear) -> None:
        super().__init__()
        self.base_layer = layer
        self.lora_A = torch.nn.Linear(layer.in_features, 2, bias=False, dtype=layer.weight.dtype)
        self.active_adapters, self.merged_adapters = ["default"], list[str]()
        self.disable_adapters, self.scaling = False, {"default": 2.0}

    def merge(self) -> None:
        self.base_layer.weight.data += 0.5
        self.merged_adapters.append("default")


class TestAdapters:
    def test_a_layer_that_is_adapted_and_merged(self, llama: TinyModel) -> None:
        attention: Any = llama.stock.model.layers[0].self_attn
        seen = [provenance_of(llama.stock)]
        attention.q_proj = adapted = Adapted(attention.q_proj)
        seen.append(provenance_of(llama.stock))
        adapted.merge()
        seen.append(provenance_of(llama.stock))
        attention.q_proj = adapted.base_layer
        seen.append(provenance_of(llama.stock))
        assert len({one["weights"] for one in seen}) == 4
        assert len({one["adapters"] for one in seen}) == 3
        assert seen[0]["adapters"] == seen[3]["adapters"] == "none"

    @pytest.mark.parametrize(
        ("name", "value"),
        [("active_adapters", ["other"]), ("disable_adapters", True), ("scaling", {"default": 1.0})],
    )
    def test_how_they_act(self, name: str, value: object) -> None:
        layer = Adapted(torch.nn.Linear(2, 2))
        before = adapters_of(layer)
        setattr(layer, name, value)
        assert adapters_of(layer) != before

    def test_what_is_around_a_model_counts(self, llama: TinyModel) -> None:
        around = torch.nn.Module()
        around.base, around.prompt = llama.stock, torch.nn.Embedding(2, 4, dtype=torch.float64)
        plain, now = provenance_of(llama.stock), provenance_of(around)
        assert {name for name in plain if plain[name] != now[name]} == {"weights"}
        del around.prompt
        assert provenance_of(around) == plain


class TestQuantised:
    @pytest.fixture(params=["8 bits", "4 bits", "4 bits, nested"])
    def quantised(self, request: pytest.FixtureRequest, tmp_path: Path) -> Any:
        pytest.importorskip("bitsandbytes")
        settings = {
            "8 bits": BitsAndBytesConfig(load_in_8bit=True),
            "4 bits": BitsAndBytesConfig(load_in_4bit=True),
            "4 bits, nested": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_use_double_quant=True),
        }[request.param]
        config = LlamaConfig(
            vocab_size=97, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
        )
        LlamaForCausalLM(config).save_pretrained(tmp_path)
        load = LlamaForCausalLM.from_pretrained
        return lambda: load(tmp_path, quantization_config=settings, dtype=torch.float32).eval()

    def test_the_same_before_and_after_a_pass(self, quantised: Any, tmp_path: Path) -> None:
        model = quantised()
        before = provenance_of(model)
        assert provenance_of(quantised()) == before
        model(torch.ones(1, 3, dtype=torch.long))
        assert provenance_of(model) == before
        assert "bitsandbytes" in before["quantisation"]
        plain = provenance_of(LlamaForCausalLM.from_pretrained(tmp_path))
        assert {"quantisation", "weights"} <= {name for name in plain if plain[name] != before[name]}

    def test_packed_for_a_processor(self, quantised: Any) -> None:
        """As the first pass leaves it where the processor has AVX512-BF16."""
        functional: Any = pytest.importorskip("bitsandbytes.functional")
        model = quantised()
        before, layer = provenance_of(model), model.model.layers[0].self_attn.q_proj
        state = getattr(layer.weight, "quant_state", None)
        if state is None:
            pytest.skip("8 bits are packed nowhere")
        data = layer.weight.data.clone()
        layer.weight.data, layer.weight.quant_state = functional._convert_weight_packed_for_cpu(data, state)
        packed = layer.weight.data.clone()
        assert not torch.equal(packed.flatten(), data.flatten())
        assert provenance_of(model) == before
        assert torch.equal(layer.weight.data, packed)
        assert layer.weight.quant_state.packing_format_for_cpu

    def test_other_scales(self, quantised: Any) -> None:
        model = quantised()
        before, layer = provenance_of(model)["weights"], model.model.layers[0].self_attn.q_proj
        state = getattr(layer.weight, "quant_state", None)
        scales = layer.weight.SCB if state is None else state.state2.absmax if state.nested else state.absmax
        scales *= 2
        # As a new parameter: scales that are written in place beside their data are not looked at.
        fields = {**vars(layer.weight), "data": layer.weight.data, "requires_grad": False}
        layer.weight = type(layer.weight)(**fields)
        assert provenance_of(model)["weights"] != before


def test_settings_of_quantisation() -> None:
    config = LlamaConfig()
    config.quantization_config = BitsAndBytesConfig(load_in_4bit=True)
    before = quantisation_of(config)
    config.quantization_config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    assert quantisation_of(config) != before
    assert '"bnb_4bit_quant_type":"nf4"' in quantisation_of(config)
