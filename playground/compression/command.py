"""`playground compress`: options in, one call of the library, what came of it out. Imports nothing heavy by itself.

`METHODS` says which function stands behind each value of `--method`; a method is added there.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from playground.compression.pruning_command import PRUNING_METHODS, USES, prune_weights
from playground.config import QUANTIZATION_SHORT_NAMES, QuantizationConfig
from playground.errors import ConfigError

INTERRUPTED = 130
_METHOD_HELP = (
    "Quantize: rtn, gptq, awq or nf4; or int8, int4, int2, gptq-int4, awq-int4. Prune: prune-layers, prune-ffn, "
    "prune-heads; zeros: magnitude, wanda, sparsegpt. Change the number of KV heads: gqa."
)


@dataclass(frozen=True)
class Options:
    """The command line, as it was given; None is what was not."""

    model: str | None
    method: str
    output: Path
    bits: int | None = None
    group_size: int | None = None
    symmetric: bool | None = None
    act_order: bool | None = None
    static_groups: bool | None = None
    damping: float | None = None
    scale_search: bool | None = None
    double_quant: bool | None = None
    calibration: tuple[Path, ...] = ()
    calibration_sequences: int | None = None
    calibration_length: int | None = None
    file_format: str | None = None
    device: str = "auto"
    resume: bool = False
    target: float | None = None
    target_of: str | None = None
    rounds: int | None = None
    layers_by: str | None = None
    sparsity: str | None = None
    kv_heads: int | None = None
    pooling: str | None = None
    heal: int | None = None


def quantize_weights(options: Options) -> None:
    """Quantize the weights of a model and write them in one of the usual file formats."""
    quantization = quantization_config(options)
    calibration = {"sequences": options.calibration_sequences, "length": options.calibration_length}

    import logging
    import sys

    from tqdm import tqdm

    from playground.compression import Calibration, compress
    from playground.engine.resolve import resolve_device
    from playground.models.bundled import BUNDLED_MODEL

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    with tqdm(unit="layer", file=sys.stderr, leave=False) as bar:

        def show(done: int, total: int) -> None:
            bar.total, bar.n = total, done
            bar.refresh()

        done = compress(
            options.model or BUNDLED_MODEL,
            quantization,
            options.output,
            calibration=Calibration(options.calibration, **_given(calibration)),
            file_format=options.file_format,
            resume=options.resume,
            device=resolve_device(options.device),
            progress=show,
        )
    smaller = done.bytes_before / max(done.bytes_after, 1)
    sizes = f"{done.bytes_before / 1e6:.1f} MB are now {done.bytes_after / 1e6:.1f} MB ({smaller:.2f} times smaller)"
    typer.echo(f"{done.output}: {sizes}")


METHODS: dict[str, Callable[[Options], None]] = {
    **dict.fromkeys(("rtn", "gptq", "awq", "nf4"), quantize_weights),
    **dict.fromkeys(PRUNING_METHODS, prune_weights),
}


def quantization_config(options: Options) -> QuantizationConfig:
    """What the options say; a short name's own values give way to them."""
    values: dict[str, Any] = {"method": options.method}
    if options.method in QUANTIZATION_SHORT_NAMES:
        named = QuantizationConfig.named(options.method)
        values = {field: getattr(named, field) for field in named.model_fields_set}
    elif options.method in ("gptq", "awq"):
        values |= {"bits": 4, "symmetric": options.method == "gptq"}
    asked = {
        "bits": options.bits,
        "group_size": options.group_size,
        "symmetric": options.symmetric,
        "act_order": options.act_order,
        "static_groups": options.static_groups,
        "damping": options.damping,
        "scale_search": options.scale_search,
        "double_quant": options.double_quant,
    }
    for name in USES:
        if getattr(options, name) is not None:
            raise ConfigError(f"--{name.replace('_', '-')} is of no use to --method {options.method}: leave it out.")
    return QuantizationConfig(**{**values, **_given(asked)})


def _report(
    model: str | None,
    files: tuple[Path, ...],
    calibration: dict[str, Any],
    chosen: dict[str, Any],
    json_file: Path | None,
    html_file: Path | None,
) -> None:
    from playground.compression.calibration import Calibration
    from playground.compression.report.measure import ReportPlan, run_report
    from playground.compression.report.page import page, render

    plan = ReportPlan(model=model, calibration=Calibration(files, **calibration), **chosen)
    for file in (json_file, html_file):
        if file is not None and not file.parent.is_dir():
            raise ConfigError(f"{file.parent} is not a folder: make it, or give another file.")
    data = run_report(plan, say=lambda line: typer.echo(line, err=True))
    if json_file is not None:
        json_file.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if html_file is not None:
        html_file.write_text(page(data), encoding="utf-8")
    render(data)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def compress(
    output: Annotated[Path | None, typer.Option(help="Folder for the smaller model; must not exist yet.")] = None,
    method: Annotated[str | None, typer.Option(help=_METHOD_HELP)] = None,
    model: Annotated[str | None, typer.Argument(help="Folder or hub id. Default: the bundled model.")] = None,
    bits: Annotated[int | None, typer.Option(help="2, 3, 4 or 8. Default: 8 for rtn, else 4.")] = None,
    group_size: Annotated[
        int | None, typer.Option(help="Columns that share a scale; -1 for whole rows. Default: 128; 64 for nf4.")
    ] = None,
    symmetric: Annotated[
        bool | None,
        typer.Option("--symmetric/--asymmetric", help="Without or with zeros. Default: with for awq, else without."),
    ] = None,
    act_order: Annotated[
        bool | None, typer.Option("--act-order/--no-act-order", help="gptq: columns with the largest inputs first.")
    ] = None,
    static_groups: Annotated[
        bool | None,
        typer.Option(
            "--static-groups/--dynamic-groups",
            help="With --act-order: groups of neighbouring columns (default), or in that order (file has a g_idx).",
        ),
    ] = None,
    damping: Annotated[float | None, typer.Option(help="gptq: share of the mean squared input added to each.")] = None,
    scale_search: Annotated[
        bool | None,
        typer.Option(
            "--scale-search/--range-scales",
            help="Scales of least error (default for gptq), or from each group's range (default for rtn).",
        ),
    ] = None,
    double_quant: Annotated[
        bool | None, typer.Option("--double-quant/--no-double-quant", help="nf4: scales as codes, too.")
    ] = None,
    calibration: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="Plain text to measure on; may be repeated. Default: the model's own writing."
        ),
    ] = None,
    calibration_sequences: Annotated[int | None, typer.Option(help="How many sequences. Default: 128.")] = None,
    calibration_length: Annotated[int | None, typer.Option(help="Tokens of each. Default: 512.")] = None,
    file_format: Annotated[
        str | None,
        typer.Option("--format", help="gptq, gptq_v2, awq, compressed-tensors or bitsandbytes. Default: the usual."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted run of the same options.")
    ] = False,
    target: Annotated[float | None, typer.Option(help="prune-*: the share that goes, 0 to 1. Default: 0.25.")] = None,
    target_of: Annotated[
        str | None,
        typer.Option(help="prune-*: of what; parts (layers, FFN channels, heads; default) or all parameters."),
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(help="prune-*: go there in so many steps, measured anew and healed in each.")
    ] = None,
    layers_by: Annotated[
        str | None, typer.Option(help="prune-layers: least perplexity (default), influence or angular distance.")
    ] = None,
    sparsity: Annotated[
        str | None,
        typer.Option(help="magnitude, wanda, sparsegpt: the share of zeros, or 2:4. Default: 0.5."),
    ] = None,
    kv_heads: Annotated[int | None, typer.Option(help="gqa: the new number of KV heads.")] = None,
    pooling: Annotated[
        str | None, typer.Option(help="gqa: what becomes of a group's heads: mean (default), first or random.")
    ] = None,
    heal: Annotated[
        int | None,
        typer.Option(metavar="STEPS", help="Pruning and gqa: train so long on the calibration text, by distillation."),
    ] = None,
    report: Annotated[
        bool, typer.Option("--report", help="Write no model: measure what every method costs and gains.")
    ] = False,
    text: Annotated[Path | None, typer.Option(help="--report: the text to measure on, unknown to the model.")] = None,
    rows: Annotated[
        str | None, typer.Option(help="--report: only some of weights,kv,zeros,layers,heads, separated by commas.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="--report: most tokens of the text. Default: 30000.")] = None,
    pairs: Annotated[int | None, typer.Option(help="--report: pairs of speed measurements. Default: 5.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="--report: write the result here, too.")] = None,
    html_file: Annotated[Path | None, typer.Option("--html", help="--report: write a page with plots here.")] = None,
) -> None:
    """Make a model smaller: a new folder is written layer by layer, the model itself stays as it is."""
    if report:
        if output is not None or method is not None:
            raise ConfigError("--report measures every method and writes no model: leave out --output and --method.")
        own = {"sequences": calibration_sequences, "length": calibration_length}
        chosen: dict[str, Any] = {"text": text, "heal": heal, "max_tokens": max_tokens, "pairs": pairs}
        chosen["rows"] = None if rows is None else tuple(name.strip() for name in rows.split(","))
        _report(model, tuple(calibration or ()), _given(own), _given(chosen), json_file, html_file)
        return
    if output is None or method is None:
        raise ConfigError("compress needs --method and --output; or --report with --text.")
    options = Options(
        model, method, output, bits, group_size, symmetric, act_order, static_groups, damping, scale_search,
        double_quant, tuple(calibration or ()), calibration_sequences, calibration_length, file_format, device, resume,
        target, target_of, rounds, layers_by, sparsity, kv_heads, pooling, heal,
    )  # fmt: skip
    _make_smaller(options)


def _make_smaller(options: Options) -> None:
    method = options.method
    known = {**dict.fromkeys(QUANTIZATION_SHORT_NAMES, quantize_weights), **METHODS}
    if method not in known:
        raise ConfigError(
            f"--method {method!r} is not known: use one of {', '.join(dict.fromkeys([*METHODS, *known]))}."
        )
    try:
        known[method](options)
    except KeyboardInterrupt:
        kept = "the layers that are done are kept; the same command with --resume goes on."
        kept = "nothing is written." if method in PRUNING_METHODS else kept
        typer.echo(f"interrupted: {kept}", err=True)
        raise typer.Exit(INTERRUPTED) from None
