"""The rows of the report: one way to make a model smaller each. Plain data; measures nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from playground.compression.healing import Healing
from playground.compression.pruning import Pruning
from playground.compression.sparsity import Pattern
from playground.compression.targets import Target
from playground.config import QuantizationConfig
from playground.errors import ConfigError
from playground.models.config import DecoderConfig

Group = Literal["weights", "kv", "zeros", "layers", "heads"]
GROUPS: dict[Group, str] = {
    "weights": "Quantized weights",
    "kv": "Quantized KV cache",
    "zeros": "Zeros among the weights",
    "layers": "Fewer layers",
    "heads": "Fewer KV heads",
}
LAYER_SHARE = 0.25


@dataclass(frozen=True)
class Variant:
    """One row. Exactly one of the fields after `label` says what is done."""

    key: str
    group: Group
    label: str
    quantization: QuantizationConfig | None = None
    pruning: Pruning | None = None
    kv_cache_dtype: Literal["int8", "fp8"] | None = None
    timed: bool = False
    """Whether its speed is measured: methods that differ only in the values of their codes run at the same."""


def variants_for(config: DecoderConfig, groups: Sequence[str] = (), heal: int = 60) -> list[Variant]:
    """Every row that this model can have; `groups` empty is all of them, `heal` steps of healing, 0 for none.

    Raises `ConfigError` for a group that does not exist.
    """
    for group in groups:
        if group not in GROUPS:
            raise ConfigError(f"--rows {group!r} is not known: give some of {', '.join(GROUPS)}.")
    found = [*_weights(), *_kv(), *_zeros(), *_layers(config, heal), *_heads(config, heal)]
    return [variant for variant in found if not groups or variant.group in groups]


def _rounded(key: str, label: str, timed: bool = False, **fields: Any) -> Variant:
    """Quantized weights, with the head as it is: what is compared is the layers."""
    return Variant(key, "weights", label, QuantizationConfig(**{"head": "keep", **fields}), timed=timed)


def _weights() -> list[Variant]:
    asym: dict[str, Any] = {"symmetric": False}
    return [
        _rounded("int8", "int8, one scale a row", bits=8),
        Variant(
            "int8-head",
            "weights",
            "int8, the head and embedding too",
            quantization=QuantizationConfig.named("int8"),
            timed=True,
        ),
        Variant("w8a8", "weights", "int8, activations too", quantization=QuantizationConfig.named("w8a8"), timed=True),
        _rounded("fp8", "float8 e4m3, one scale a row", method="fp8"),
        *(
            _rounded(f"rtn4-{size}", f"int4 to nearest, {_groups(size)}", bits=4, group_size=size, **asym)
            for size in (-1, 128, 64, 32)
        ),
        _rounded("rtn4-sym-64", "int4 to nearest, groups of 64, symmetric", bits=4, group_size=64),
        Variant(
            "int4",
            "weights",
            "int4, groups of 128, symmetric; head int8",
            quantization=QuantizationConfig.named("int4"),
            timed=True,
        ),
        _rounded("nf4", "nf4, blocks of 64", method="nf4", timed=True),
        _rounded("nf4-double", "nf4, scales in 8 bits", method="nf4", double_quant=True),
        _rounded(
            "rtn4-search",
            "int4 to nearest, groups of 128, searched scales",
            bits=4,
            group_size=128,
            scale_search=True,
            **asym,
        ),
        _rounded(
            "gptq4-range",
            "int4 by GPTQ, groups of 128, scales from the range",
            method="gptq",
            bits=4,
            group_size=128,
            scale_search=False,
            **asym,
        ),
        _rounded(
            "gptq4", "int4 by GPTQ, groups of 128, searched scales", method="gptq", bits=4, group_size=128, **asym
        ),
        _rounded(
            "gptq4-order",
            "the same, largest inputs first",
            method="gptq",
            bits=4,
            group_size=128,
            act_order=True,
            **asym,
        ),
        _rounded("awq4", "int4 by AWQ, groups of 128", method="awq", bits=4, group_size=128, **asym),
        _rounded("rtn3", "int3 to nearest, groups of 128", bits=3, group_size=128, **asym),
        _rounded(
            "gptq3", "int3 by GPTQ, groups of 128, searched scales", method="gptq", bits=3, group_size=128, **asym
        ),
        _rounded("awq3", "int3 by AWQ, groups of 128", method="awq", bits=3, group_size=128, **asym),
        _rounded("rtn2", "int2 to nearest, groups of 128", bits=2, group_size=128, **asym),
        _rounded("rtn2-32", "int2 to nearest, groups of 32", bits=2, group_size=32, **asym),
        _rounded(
            "gptq2-32-range",
            "int2 by GPTQ, groups of 32, scales from the range",
            method="gptq",
            bits=2,
            group_size=32,
            scale_search=False,
            **asym,
        ),
        _rounded(
            "gptq2-32", "int2 by GPTQ, groups of 32, searched scales", method="gptq", bits=2, group_size=32, **asym
        ),
    ]


def _groups(size: int) -> str:
    return "one a row" if size == -1 else f"groups of {size}"


def _kv() -> list[Variant]:
    return [
        Variant("kv-int8", "kv", "KV cache in int8, a scale for each token and head", kv_cache_dtype="int8"),
        Variant("kv-fp8", "kv", "KV cache in float8 e4m3, likewise", kv_cache_dtype="fp8"),
    ]


def _zeros() -> list[Variant]:
    half = Pattern(0.5)
    names = {"magnitude": "the smallest", "wanda": "by Wanda", "sparsegpt": "by SparseGPT"}
    return [
        Variant(method, "zeros", f"half of the weights zero, {name}", pruning=Pruning(method, sparsity=half))  # type: ignore[arg-type]
        for method, name in names.items()
    ]


def _layers(config: DecoderConfig, heal: int) -> list[Variant]:
    if config.num_layers < 2:
        return []
    target = Target(LAYER_SHARE)

    def pruning(by: str, healing: Healing | None = None) -> Pruning:
        return Pruning("prune-layers", target, layers_by=by, healing=healing)  # type: ignore[arg-type]

    rows = [
        Variant(
            "layers", "layers", "a quarter of the layers, by perplexity", pruning=pruning("perplexity"), timed=True
        ),
        Variant("layers-influence", "layers", "a quarter of the layers, by influence", pruning=pruning("influence")),
    ]
    if heal:
        healed = pruning("perplexity", Healing(heal))
        rows.append(
            Variant("layers-healed", "layers", f"by perplexity, healed for {heal} steps", pruning=healed, timed=True)
        )
    return rows


def _heads(config: DecoderConfig, heal: int) -> list[Variant]:
    if config.num_kv_heads < 2:
        return []
    fewer = config.num_kv_heads // 2
    rows = []
    for healing in (None, Healing(heal)) if heal else (None,):
        after = "" if healing is None else f", trained on for {heal} steps"
        for pooling, name in (("mean", "their mean"), ("first", "the first"), ("random", "random")):
            rows.append(
                Variant(
                    f"heads-{pooling}" + ("-healed" if healing else ""),
                    "heads",
                    f"{fewer} of {config.num_kv_heads} KV heads, {name}{after}",
                    pruning=Pruning("gqa", kv_heads=fewer, pooling=pooling, healing=healing),  # type: ignore[arg-type]
                    timed=pooling == "mean" and healing is None,
                )
            )
    return rows
