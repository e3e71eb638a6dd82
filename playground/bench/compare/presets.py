"""One comparison for each technique against its baseline, made so that the bundled model shows the effect on a CPU.

A preset chooses prompts, batch and sampling, names the metric to watch, and says what to expect and why.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from playground.bench.compare.plan import Plan, Side
from playground.bench.compare.prompts import BY_KEY as PROMPTS
from playground.bench.compare.shapes import shape_folder
from playground.config import EngineConfig, SpeculationConfig

Sides = tuple[tuple[str, dict[str, Any]], ...]


@dataclass(frozen=True)
class Preset:
    """`base` holds for every side; `sides` are what is compared, the baseline first."""

    key: str
    group: str
    name: str
    expect: str
    """What to expect and why, in two sentences at most."""
    watch: str
    """Key of the metric that shows it."""
    prompts: str
    sides: Sides | Callable[[], Sides]
    """Called where files must be written for them."""
    base: dict[str, Any] = field(default_factory=dict)
    workload: dict[str, Any] = field(default_factory=dict)

    def plan(self) -> Plan:
        """The comparison, ready to be run."""
        sides = self.sides() if callable(self.sides) else self.sides
        return Plan(
            sides=tuple(
                Side(name=name, config=EngineConfig(**{**_pool(fields), **self.base, **fields}))
                for name, fields in sides
            ),
            prompts=PROMPTS[self.prompts].prompts,
            **self.workload,
        )


def _pool(fields: dict[str, Any]) -> dict[str, Any]:
    """A KV pool of 8,192 tokens: enough for every preset, and engines are ready at once."""
    return {} if fields.get("kv_cache") == "none" else {"num_kv_blocks": 512}


def _drafts(method: str = "draft", **fields: Any) -> dict[str, Any]:
    return {"speculation": SpeculationConfig(method=method, **fields)}  # type: ignore[arg-type]


def _shapes(*names: str) -> Callable[[], Sides]:
    labels = {"mha": "multi-head (8 KV heads)", "gqa": "grouped-query (2)", "mqa": "multi-query (1)"}
    return lambda: tuple((labels[name], {"model": str(shape_folder(name))}) for name in names)


ONE_REQUEST = {"arrival": "one_by_one", "repeats": 5}
EXACT = {"dtype": "float32"}
"""Where the texts are to be the same: bfloat16 has so many ties that another order of sums can tip one."""

PRESETS: tuple[Preset, ...] = (
    Preset(
        "kv-cache",
        "KV cache",
        "KV cache on / off",
        "Far fewer milliseconds a token with the cache. Without it every step computes the whole text again, so a "
        "token costs more the longer the text is.",
        "time_per_output_token",
        "story",
        (("KV cache", {}), ("no KV cache", {"kv_cache": "none"})),
        {"max_num_seqs": 4},
        {**ONE_REQUEST, "max_tokens": 128},
    ),
    Preset(
        "paged",
        "KV cache",
        "Paged / contiguous",
        "More tokens per second from the same memory with pages. A contiguous cache reserves the longest sequence for "
        "every request, so four run at once here and the others wait.",
        "tokens_per_second",
        "stories",
        (("paged", {}), ("contiguous", {"kv_cache": "contiguous"})),
        {"num_kv_blocks": 256},
        {"max_tokens": 96},
    ),
    Preset(
        "int8-kv",
        "KV cache",
        "int8 / plain KV cache",
        "About half of the memory for keys and values. They are rounded to 8 bits with a scale for each token and "
        "head, so the text can part at some close decision.",
        "kv_bytes_peak",
        "stories",
        (("plain KV", {}), ("int8 KV", {"kv_cache_dtype": "int8"})),
        {},
        {"max_tokens": 96},
    ),
    Preset(
        "prefix",
        "KV cache",
        "Prefix cache on / off",
        "A shorter time to the first token from the second prompt on. The four prompts begin alike, and the KV blocks "
        "of the common beginning are computed once.",
        "time_to_first_token",
        "shared",
        (("prefix cache", {}), ("no prefix cache", {"prefix_caching": False})),
        {},
        {**ONE_REQUEST, "max_tokens": 24},
    ),
    Preset(
        "batching",
        "Scheduling",
        "Continuous / static batching",
        "Fewer steps and a shorter wait for the first token. A static batch of three goes on until its longest reply "
        "ends, with places idle beside it, before the next three start.",
        "tokens_per_second",
        "mixed",
        (("continuous", {}), ("static", {"batching": "static"})),
        {"max_num_seqs": 3},
        {"max_tokens": 200},
    ),
    Preset(
        "chunked",
        "Scheduling",
        "Chunked prefill on / off",
        "Shorter gaps between the others' tokens while a long prompt joins. It is computed in pieces of at most 64 "
        "tokens beside them; its own first token comes a little later for it.",
        "longest_gap",
        "joining",
        (
            ("chunked", {"max_num_batched_tokens": 64}),
            ("whole prompts", {"chunked_prefill": False}),
        ),
        {"max_num_seqs": 8},
        {"arrival": "joining", "max_tokens": 64, "ignore_eos": True},
    ),
    Preset(
        "attention",
        "Attention",
        "Flash / naive attention",
        "Fewer bytes moved for long prompts. The naive form writes the whole matrix of scores to memory, the fused one "
        "(torch's SDPA) keeps it in pieces that fit the cache. At the few hundred tokens that this model reads, on a "
        "CPU, the two can be close.",
        "time_to_first_token",
        "long",
        (("fused (sdpa)", {"attention": "sdpa"}), ("naive", {"attention": "naive"})),
        {"prefix_caching": False},
        {**ONE_REQUEST, "max_tokens": 24},
    ),
    Preset(
        "gqa",
        "Attention",
        "GQA / MHA",
        "A quarter of the KV memory with two KV heads in place of eight, an eighth with one. Three shapes of "
        "some 25 million random weights: nobody trained one model in all three forms, so look at bytes and times, not "
        "at the text.",
        "kv_bytes_peak",
        "long",
        _shapes("mha", "gqa", "mqa"),
        {"load_format": "dummy", "prefix_caching": False},
        {"max_tokens": 24, "ignore_eos": True, "repeats": 3},
    ),
    Preset(
        "speculation",
        "Speculation",
        "Draft model, K = 4 / none",
        "More than one token per step, and word for word the same text. Whether that is faster depends on the cost of "
        "the draft: with a target of 6.6 M parameters on a CPU a step is mostly fixed cost.",
        "tokens_per_step",
        "few",
        (("no speculation", {}), ("draft model, K = 4", _drafts())),
        EXACT,
        {**ONE_REQUEST, "max_tokens": 96},
    ),
    Preset(
        "sampled-speculation",
        "Speculation",
        "Sampled: rejection / coupled",
        "Rejection sampling keeps the distribution but not the very text; coupled draws keep the text too, for fewer "
        "accepted drafts.",
        "acceptance_rate",
        "few",
        (
            ("no speculation", {}),
            ("draft, rejection", _drafts()),
            ("draft, coupled", _drafts(verification="coupled")),
        ),
        EXACT,
        {**ONE_REQUEST, "max_tokens": 96, "temperature": 0.8, "repeats": 3},
    ),
    Preset(
        "ngram",
        "Speculation",
        "n-gram drafts / none",
        "Several tokens per step where the text repeats itself. Drafts are looked up in what was already written and "
        "cost almost nothing.",
        "tokens_per_step",
        "repeating",
        (("no speculation", {}), ("n-gram, K = 4", _drafts("ngram"))),
        EXACT,
        {**ONE_REQUEST, "chat": False, "max_tokens": 96},
    ),
    Preset(
        "int8",
        "Weights",
        "int8 / bf16 weights",
        "About half of the memory for weights. Each is rounded to 8 bits with one scale a row; the text parts only at "
        "close decisions. On a GPU decoding is faster too, as it is bound by reading weights.",
        "memory_weights_bytes",
        "few",
        (("bf16", {"dtype": "bfloat16"}), ("int8", {"dtype": "bfloat16", "quantization": "int8"})),
        {},
        {"max_tokens": 64},
    ),
    Preset(
        "int4",
        "Weights",
        "int4 / bf16 weights",
        "About a third of the memory for weights, scales and the int8 output head included. Rounding to 4 bits "
        "moves probabilities more, so the text parts early.",
        "memory_weights_bytes",
        "few",
        (("bf16", {"dtype": "bfloat16"}), ("int4", {"dtype": "bfloat16", "quantization": "int4"})),
        {},
        {"max_tokens": 64},
    ),
)
BY_KEY = {preset.key: preset for preset in PRESETS}
