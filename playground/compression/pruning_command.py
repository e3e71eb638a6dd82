"""`playground compress` for methods that are not quantization: options in, one call of `prune`, what came of it out.

Imports nothing heavy by itself.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

import typer

from playground.errors import ConfigError

if TYPE_CHECKING:
    from playground.compression.command import Options
    from playground.compression.pruning import Pruned, Pruning

STRUCTURED = ("prune-layers", "prune-ffn", "prune-heads")
SPARSE = ("magnitude", "wanda", "sparsegpt")
PRUNING_METHODS = (*STRUCTURED, *SPARSE, "gqa")
USES: dict[str, tuple[str, ...]] = {
    "target": STRUCTURED,
    "target_of": STRUCTURED,
    "rounds": STRUCTURED,
    "layers_by": ("prune-layers",),
    "sparsity": SPARSE,
    "kv_heads": ("gqa",),
    "pooling": ("gqa",),
    "heal": PRUNING_METHODS,
}
"""The options of pruning, and the methods that read them."""
_OF_ALL = ("model", "method", "output", "calibration", "calibration_sequences", "calibration_length", "device")


def prune_weights(options: Options) -> None:
    """Prune a model, or change the number of its KV heads, and write it as a checkpoint like any other."""
    import logging
    import sys

    from playground.compression import Calibration, prune
    from playground.models.bundled import BUNDLED_MODEL

    pruning = pruning_config(options)
    if options.device not in ("auto", "cpu"):
        raise ConfigError(f"--device {options.device}: pruning runs on the CPU; leave it out.")
    amounts = {"sequences": options.calibration_sequences, "length": options.calibration_length}
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    calibration = Calibration(options.calibration, **_given(amounts))
    done = prune(options.model or BUNDLED_MODEL, pruning, options.output, calibration)
    typer.echo(f"{done.output}: {summary(done)}")


def pruning_config(options: Options) -> Pruning:
    """What the options say. `ConfigError` for values out of range and options that are of no use to the method."""
    from playground.compression.healing import Healing
    from playground.compression.pruning import Pruning
    from playground.compression.sparsity import Pattern
    from playground.compression.targets import Target

    for field in fields(options):
        useless = field.name not in _OF_ALL and options.method not in USES.get(field.name, ())
        if useless and getattr(options, field.name) != field.default:
            name = "format" if field.name == "file_format" else field.name.replace("_", "-")
            raise ConfigError(f"--{name} is of no use to --method {options.method}: leave it out.")
    if options.method == "gqa" and options.kv_heads is None:
        raise ConfigError("--method gqa needs --kv-heads: say how many there are to be, for example --kv-heads 1.")
    choices = {
        "target_of": (options.target_of, ("parts", "parameters")),
        "layers_by": (options.layers_by, ("perplexity", "influence", "angular")),
        "pooling": (options.pooling, ("mean", "first", "random")),
    }
    for name, (value, allowed) in choices.items():
        if value is not None and value not in allowed:
            raise ConfigError(f"--{name.replace('_', '-')} {value!r} is not known: use {', '.join(allowed)}.")
    values: dict[str, Any] = {"rounds": options.rounds, "layers_by": options.layers_by, "pooling": options.pooling}
    values |= {"kv_heads": options.kv_heads}
    if options.target is not None or options.target_of is not None:
        share = 0.25 if options.target is None else options.target
        values["target"] = Target(share, **_given({"of": options.target_of}))
    if options.sparsity is not None:
        values["sparsity"] = Pattern.parse(options.sparsity)
    if options.heal is not None:
        values["healing"] = Healing(options.heal)
    return Pruning(options.method, **_given(values))  # type: ignore[arg-type]


def summary(done: Pruned) -> str:
    """One line: parameters, layers, zeros, KV bytes a token."""
    before, after = done.parameters
    parts = [f"{before:,} parameters"]
    if after != before:
        parts[0] += f" are now {after:,} ({1 - after / before:.1%} fewer)"
    if done.removed_layers:
        parts.append(f"without layers {', '.join(map(str, done.removed_layers))}")
    if done.zeros > 0.01:
        parts.append(f"{done.zeros:.1%} of them zeros")
    kv_before, kv_after = done.kv_bytes_per_token
    if kv_after != kv_before:
        parts.append(f"{kv_before:,} bytes of KV a token are now {kv_after:,}")
    return "; ".join(parts)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}
