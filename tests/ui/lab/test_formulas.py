"""The Lab's formulas in JavaScript against the engine's own in Python, and against exact enumeration."""

import json
from collections.abc import Iterator
from math import ceil
from statistics import fmean
from typing import Any

import pytest

from playground.engine.speculation.formula import best_num_tokens, expected_tokens, speedup
from playground.models.config import DecoderConfig
from playground.models.kv_cache import kv_dtype
from playground.telemetry.memory_model import Calculation
from playground.ui.components import STATIC
from tests.ui.browser import chromium

pytestmark = [pytest.mark.browser, pytest.mark.timeout(120)]
SHAPE = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 64, "hidden_size": 96,
    "intermediate_size": 64, "num_hidden_layers": 5, "num_attention_heads": 6, "num_key_value_heads": 3,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "torch_dtype": "float32",
}  # fmt: skip


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    with chromium() as browser:
        page = browser.new_page()
        page.evaluate("window.Playground = {}")
        page.add_script_tag(content=(STATIC / "lab" / "formulas.js").read_text(encoding="utf-8"))
        yield page
        browser.close()


def ask(page: Any, expression: str, cases: list[Any]) -> list[Any]:
    """The expression of F and `one`, for every case."""
    code = f"(cases) => {{ const F = window.Playground.formulas; return cases.map((one) => {expression}); }}"
    return list(page.evaluate(code, json.loads(json.dumps(cases))))


def test_speculation_agrees_with_the_engines_formula(page: Any) -> None:
    cases = [(a, k, c, v) for a in (0, 0.3, 0.7, 0.95, 1) for k in (0, 1, 4, 16) for c, v in ((0, 1), (0.12, 1.3))]
    tokens = ask(page, "F.expectedTokens(one[0], one[1])", cases)
    rates = ask(page, "F.speedup(F.expectedTokens(one[0], one[1]), one[1], one[2], one[3])", cases)
    best = ask(page, "F.best(one[0], one[2], one[3], 16)", cases)
    for (a, k, c, v), found, rate, most in zip(cases, tokens, rates, best, strict=True):
        expected = expected_tokens(a, k)
        assert found == pytest.approx(expected, rel=1e-12)
        assert rate == pytest.approx(speedup(expected, k, c, v), rel=1e-12)
        by_engine = best_num_tokens([a] * 16, [1.0, *(i * c + v for i in range(1, 17))])
        assert (most["k"], most["speedup"]) == (by_engine.num_tokens, pytest.approx(by_engine.speedup))


def test_kv_bytes_are_what_the_engine_allocates(page: Any) -> None:
    config = DecoderConfig.from_dict(SHAPE)
    types = ["float32", "bfloat16", "float16", "int8", "fp8"]
    shape = {"layers": 5, "kvHeads": config.num_kv_heads, "headDim": config.head_dim}
    found = ask(page, "F.kvBytesPerToken(one)", [{**shape, "dtype": name} for name in types])
    assert found == [config.kv_bytes_per_token(kv_dtype(name)) for name in types]


@pytest.mark.parametrize("window", [None, 512, 4096])
def test_kv_bytes_of_sequences_agree_with_the_memory_model(page: Any, window: int | None) -> None:
    model = Calculation(1, 16, 40, 40, 128, 16, context=2048, sequences=7, window=window)
    call = (
        "F.kvBytes({layers: 40, kvHeads: 40, headDim: 128, dtype: 'bfloat16'}, {context: 2048, batch: 7, window: one})"
    )
    assert ask(page, call, [window or 0]) == [model.kv_bytes]


def test_block_waste_is_the_mean_over_all_lengths(page: Any) -> None:
    cases = [(low, high, size) for low, high in ((1, 1), (1, 64), (7, 300), (16, 17)) for size in (1, 3, 16, 128)]
    found = ask(page, "F.waste({shortest: one[0], longest: one[1], size: one[2]})", [*cases])
    for (low, high, size), one in zip(cases, found, strict=True):
        lengths = range(low, high + 1)
        slots = fmean(ceil(n / size) * size for n in lengths)
        assert one["slots"] == pytest.approx(slots) and one["blocks"] == pytest.approx(slots / size)
        assert one["wasted"] == pytest.approx(slots - fmean(lengths), abs=1e-9)
        assert one["share"] == pytest.approx(1 - fmean(lengths) / slots, abs=1e-9)
        assert one["lastFill"] == pytest.approx(fmean(((n - 1) % size + 1) / size for n in lengths))


def test_a_steps_operations_and_bytes_are_the_sum_over_its_tokens(page: Any) -> None:
    shape = {"parameters": 1000, "weightBits": 8, "layers": 2, "heads": 3, "headDim": 4, "kvBytesPerToken": 50}
    cases = [(batch, context, tokens) for batch in (1, 7) for context in (1, 20) for tokens in (1, 5, 20)]
    call = f"F.step({json.dumps(shape)}, {{batch: one[0], context: one[1], tokens: one[2]}})"
    for (batch, context, tokens), step in zip(cases, ask(page, call, cases), strict=True):
        seen = range(context - min(tokens, context) + 1, context + 1)  # what each token sees, itself included
        # q k and p v: a product of head_dim numbers for each head, layer and token seen, twice two operations
        operations = batch * sum(2 * 1000 + 2 * 2 * 2 * 3 * 4 * n for n in seen)
        assert step["operations"] == pytest.approx(operations)
        assert step["bytes"] == 1000 + batch * context * 50
        assert step["intensity"] == pytest.approx(operations / step["bytes"])
        assert step["tokens"] == batch * len(seen)


def test_a_step_waits_for_whatever_takes_longer(page: Any) -> None:
    limits = "{bandwidth: 100, operations: 1000}"
    slow, fast = ask(
        page, f"F.bound(one, {limits})", [{"bytes": 50, "operations": 100}, {"bytes": 50, "operations": 4000}]
    )
    assert (slow["by"], slow["seconds"], slow["rate"], slow["ridge"]) == ("memory", 0.5, 200, 10)
    assert (fast["by"], fast["seconds"], fast["rate"]) == ("arithmetic", 4, 1000)
