"""``kiv ask`` reads in pieces and answers across the length where the rotary factors change, as full attention does."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import pytest
import torch
from cli_models import CHARACTERS, tokenizer
from kiv_hf import rope_for_length
from kiv_hf.cli.app import app
from kiv_hf.cli.ask import AGAIN, Screen, Settings, converse
from kiv_hf.cli.generate import Part, Run, parts, prefill
from kiv_hf.cli.prompt import compose
from kiv_hf.cli.tally import Tally
from phi_models import IDS, NEW, ROPE, SHORT, TYPES, Phi, build
from rich.console import Console
from transformers import AutoModelForCausalLM, DynamicCache, Phi3Config
from typer.testing import CliRunner

if TYPE_CHECKING:
    from pathlib import Path

CHUNK = 7
LONGROPE = ROPE | {"original_max_position_embeddings": SHORT}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 6.0}
SETTINGS = Settings("fast", "auto", "cpu", CHUNK, NEW)


@pytest.fixture(params=[*TYPES, "llama"])
def phi(request: pytest.FixtureRequest) -> Phi:
    return build(request.param, **({"rope": LONGROPE} if request.param == "llama" else {}))


@pytest.fixture
def dynamic() -> Phi:
    return build("llama", DYNAMIC, max_position_embeddings=SHORT)


class Nothing:
    """A tokenizer that names no token to stop at, and writes every one."""

    eos_token_id = None

    def decode(self, ids: torch.Tensor, **_: Any) -> str:
        return " ".join(map(str, ids))


def answer(
    phi: Phi, ids: torch.Tensor, cache: Any = None, tokenizer: Any = None, **more: Any
) -> tuple[Run, Any, str, str]:
    """Return what `converse` returns, the cache, and what it printed."""
    out, err = io.StringIO(), io.StringIO()
    cache = phi.cache() if cache is None else cache
    consoles = [Console(file=file, width=200) for file in (out, err)]
    run = converse(
        phi.kiv, Nothing() if tokenizer is None else tokenizer, ids, cache, SETTINGS, Screen(*consoles), **more
    )
    return run, cache, out.getvalue(), err.getvalue()


def expected(phi: Phi, ids: torch.Tensor, **more: Any) -> Any:
    return phi.truth(ids, **more).sequences[0, ids.shape[1] :].tolist()


class TestReadingInPieces:
    @pytest.mark.parametrize("tokens", [SHORT - 3, SHORT, SHORT + 1, 2 * SHORT])
    def test_gives_the_logits_of_one_pass(self, phi: Phi, tokens: int) -> None:
        ids = IDS[:, :tokens]
        (part,) = parts(phi.kiv, tokens, 1)
        with rope_for_length(phi.kiv, part.rope_tokens):
            got = prefill(phi.kiv, ids, phi.cache(), CHUNK)
        with torch.no_grad():
            right = phi.stock(ids, use_cache=False).logits[:, -1].float()
        assert (got - right).abs().max() <= 1e-6 * right.abs().max()

    def test_of_a_long_prompt_gives_the_answer_of_one_pass(self, phi: Phi) -> None:
        run, cache, _, err = answer(phi, IDS)
        assert run.answer == expected(phi, IDS)
        assert cache.get_seq_length() == IDS.shape[1] + NEW - 1
        assert AGAIN not in err


class TestAnAnswerThatCrosses:
    @pytest.mark.parametrize("tokens", [SHORT - 8, SHORT - NEW + 2, SHORT])
    def test_is_that_of_one_pass(self, phi: Phi, tokens: int) -> None:
        ids = IDS[:, :tokens]
        tally = Tally()
        run, cache, out, err = answer(phi, ids, tally=tally)
        assert run.answer == expected(phi, ids)
        assert out.split() == list(map(str, run.answer))
        assert err.count(AGAIN) == 1
        assert cache.get_seq_length() == tokens + NEW - 1
        assert len(run.step_s) == NEW - 2  # two tokens came of reading
        assert tally.exact_mass == pytest.approx(1)

    def test_in_a_plain_cache(self, phi: Phi) -> None:
        cache = DynamicCache(config=phi.kiv.config)
        assert answer(phi, IDS[:, :16], cache)[0].answer == expected(phi, IDS[:, :16])

    @pytest.mark.parametrize("tokens", [SHORT - NEW, SHORT - NEW + 1])
    def test_only_if_a_token_beyond_is_fed(self, phi: Phi, tokens: int) -> None:
        run, _, _, err = answer(phi, IDS[:, :tokens])
        assert run.answer == expected(phi, IDS[:, :tokens])
        assert AGAIN not in err

    def test_not_if_it_ends_before(self, phi: Phi) -> None:
        ids = IDS[:, :16]
        stop = expected(phi, ids)[SHORT - 16]  # the last token that the short factors give

        class Stops(Nothing):
            eos_token_id = stop

        run, _, _, err = answer(phi, ids, tokenizer=Stops())
        assert run.answer == expected(phi, ids, eos_token_id=stop)
        assert AGAIN not in err


class TestDynamicFactors:
    """No two lengths have the same: beyond the limit all tokens have those of the longest text that may come."""

    def test_of_a_long_prompt(self, dynamic: Phi) -> None:
        run, _, _, err = answer(dynamic, IDS)
        assert run.answer == dynamic.truth_under(IDS.shape[1] + NEW - 1, IDS).sequences[0, IDS.shape[1] :].tolist()
        assert AGAIN not in err

    def test_of_an_answer_that_crosses(self, dynamic: Phi) -> None:
        ids = IDS[:, :16]
        run, _, _, err = answer(dynamic, ids)
        short = expected(dynamic, ids, max_new_tokens=SHORT - 16 + 1)
        text = torch.cat([ids, torch.tensor([short])], 1)
        rest = dynamic.truth_under(16 + NEW - 1, text).sequences[0, 16 : 16 + NEW].tolist()
        assert run.answer == rest
        assert err.count(AGAIN) == 1


def test_a_model_with_one_set_of_factors_has_one_part() -> None:
    plain = build("llama", {"rope_type": "default", "rope_theta": 1e4}).kiv
    assert list(parts(plain, 20, 30)) == [Part(30, 49)]
    assert list(parts(plain, 20, 0)) == [Part(0, 20)]


def test_from_end_to_end(tmp_path: Path) -> None:
    """The text is told to be read again on standard error; the answer alone is on standard output."""
    config = Phi3Config(
        vocab_size=2 + len(CHARACTERS), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=800, dtype="float32",
        original_max_position_embeddings=100, rope_parameters=ROPE, pad_token_id=None, bos_token_id=None,
        eos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    text = tmp_path / "text.txt"
    text.write_text("void and without form", encoding="utf-8")
    room = 100 - len(compose(tokenizer(), "void and without form", "Was it?"))
    assert room > 0
    arguments = ["ask", "-m", tmp_path, "-f", text, "--max-new-tokens", room + 9, "--chunk-tokens", 16, "--exact"]
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, [*map(str, arguments), "Was it?"])
    assert result.exit_code == 0, result.output
    assert result.stderr.count(AGAIN) == 1
    assert AGAIN not in result.stdout
