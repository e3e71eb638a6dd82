"""The benchmarks that the Lab offers: what each measures, what may be chosen, and the command it comes to. Pure."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from playground.bench.command import DTYPES
from playground.errors import ConfigError
from playground.validation import shorten

Options = Mapping[str, str]
MODELS = ("dummy-135m", "bundled", "dummy-tiny")
LONGEST_OPTION = 500
MAX_REPEATS = 100
QUICK_SECONDS, FULL_SECONDS = 15 * 60.0, 3 * 3600.0
NO_GPU = (
    "There is no GPU here that torch can use. Without one the kernels would only be rehearsed in Triton's interpreter, "
    "which gives no numbers."
)


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One entry of the Lab's list."""

    name: str
    title: str
    what: str
    """What it measures, and against what."""
    takes: str
    """How long a full run takes, roughly."""
    fields: tuple[str, ...] = ()
    """Names of `FIELDS`, beside the choice of quick or full."""
    model: str = ""
    """What an empty model means."""
    is_shown_as: str = ""
    """The `benchmark` of its result, where that is not its name."""
    unavailable: Callable[[], str | None] = lambda: None
    """Why it cannot be run here, in a sentence."""


def _no_gpu() -> str | None:
    import torch

    return None if torch.cuda.is_available() else NO_GPU


BENCHMARKS: tuple[Benchmark, ...] = (
    Benchmark(
        "engine",
        "Engine",
        "Time to the first token and decode speed against transformers on the same weights, in pairs, and where the "
        "time of a step goes.",
        "10 to 30 minutes on a CPU",
        ("model", "dtype", "repeats"),
        "dummy-135m and bundled",
    ),
    Benchmark(
        "speculation",
        "Speculation",
        "Acceptance, tokens per step and speed-up of every way to draft, each in pairs with none, beside the formula.",
        "10 to 30 minutes on a CPU",
        ("model", "dtype", "repeats"),
        "bundled, with its draft model",
    ),
    Benchmark(
        "prompt-cache",
        "Prompt cache",
        "The first token after a prefix that was never seen and after one that is cached: in the pool, in host memory, "
        "on disk.",
        "5 to 15 minutes on a CPU",
        ("model", "repeats"),
        "dummy-135m and bundled",
    ),
    Benchmark(
        "samples",
        "Shared blocks",
        "KV blocks that parallel samples and beams share, against a cache for each of them.",
        "under a minute",
        ("model",),
        "bundled",
    ),
    Benchmark(
        "quantization",
        "Quantization",
        "Decoding with quantized weights in pairs with unquantized ones, and up to how many rows packed products pay.",
        "5 to 10 minutes on a CPU",
        ("model", "repeats"),
        "dummy-135m",
    ),
    Benchmark(
        "compression",
        "Compression",
        "What every way to make the model smaller costs in perplexity on your text, and gains in memory and speed.",
        "a quarter of an hour and more on a CPU",
        ("text", "model", "repeats"),
        "bundled",
    ),
    Benchmark(
        "ceilings",
        "Ceilings",
        "What this machine can do at most: bytes copied and operations multiplied per second. The roofline uses them.",
        "under a minute",
    ),
    Benchmark(
        "kernels",
        "Kernels",
        "Every Triton kernel against torch's and against the limits of the GPU.",
        "a few minutes on a GPU",
        is_shown_as="gpu",
        unavailable=_no_gpu,
    ),
)
BY_NAME = {one.name: one for one in BENCHMARKS}


def title_of(kind: str) -> str:
    """The title of results that call themselves `kind`."""
    return next((one.title for one in BENCHMARKS if kind in (one.name, one.is_shown_as)), "Another benchmark")


def form(benchmark: Benchmark) -> list[dict[str, Any]]:
    """Groups for `P.form`."""
    size = [{"value": "quick", "missing": False}, {"value": "full", "missing": False}]
    dtypes = [{"value": name, "missing": False} for name in ("default", *DTYPES)]
    fields = {
        "model": _text("Model", f"Empty: {benchmark.model}", "A folder on this machine, " + ", ".join(MODELS) + "."),
        "dtype": {**_text("Dtype", "", "What weights and activations are."), "kind": "choice", "choices": dtypes},
        "repeats": _text("Repeats", "Empty: as planned", "Measured pairs of each case. More say more."),
        "text": _text("Text file", "A path on this machine", "Plain text that the model was not trained on."),
    }
    chosen = [
        {
            **_text("Extent", "", "Quick shows in seconds that everything runs; its numbers mean nothing. Full takes "
            f"{benchmark.takes}."),
            "name": "extent", "kind": "choice", "choices": size, "default": "quick",
        },
        *({**fields[name], "name": name} for name in benchmark.fields),
    ]  # fmt: skip
    for field in chosen:
        if field["name"] == "dtype":
            field["default"] = "default"
    return [{"title": "Options", "fields": chosen}]


def _text(label: str, placeholder: str, tip: str) -> dict[str, Any]:
    return {"label": label, "kind": "text", "placeholder": placeholder, "tip": tip, "default": "", "wide": False}


def is_quick(options: Options) -> bool:
    return options.get("extent", "quick") != "full"


def read_options(data: object) -> tuple[Benchmark, dict[str, str]]:
    """What the page sent. Raises `ConfigError`, one sentence, for what cannot be run."""
    values = data if isinstance(data, dict) else {}
    benchmark = BY_NAME.get(str(values.get("benchmark", "")))
    if benchmark is None:
        raise ConfigError(f"There is no such benchmark: choose one of {', '.join(BY_NAME)}.")
    given = values.get("options")
    asked = given if isinstance(given, dict) else {}
    options = {name: str(asked.get(name, "")).strip() for name in ("extent", *benchmark.fields)}
    reason = benchmark.unavailable()
    if reason is not None:
        raise ConfigError(reason)
    if options["extent"] not in ("quick", "full"):
        raise ConfigError(f"Extent {shorten(options['extent'])} is not known: choose quick or full.")
    for name, value in options.items():
        if len(value) > LONGEST_OPTION or value.startswith("-") or not value.isprintable():
            raise ConfigError(f"{name.capitalize()} {shorten(value)} is not allowed: give a name or a path.")
    if options.get("dtype") == "default":
        options["dtype"] = ""
    if options.get("dtype") and options["dtype"] not in DTYPES:
        raise ConfigError(f"Dtype {shorten(options['dtype'])} is not known: choose one of {', '.join(DTYPES)}.")
    repeats = options.get("repeats")
    if repeats and not (repeats.isdecimal() and repeats.isascii() and 1 <= int(repeats) <= MAX_REPEATS):
        raise ConfigError(f"Repeats {shorten(repeats)} is not allowed: give a whole number from 1 to {MAX_REPEATS}.")
    if benchmark.name == "compression":
        _check_text(options["text"])
    return benchmark, {name: value for name, value in options.items() if value}


def _check_text(text: str) -> None:
    if not text:
        raise ConfigError("Give a text file to measure on, one that the model was not trained on.")
    if not Path(text).expanduser().is_file():
        raise ConfigError(f"Text file {shorten(text)} does not exist: give the path of a plain text on this machine.")


def arguments(benchmark: Benchmark, options: Options, result: Path) -> list[str]:
    """The `playground` command line that writes its result to `result`."""
    quick = is_quick(options)
    if benchmark.name == "compression":
        return _compression(options, quick, result)
    found = ["bench", benchmark.name, "--json", str(result)]
    plural = benchmark.name in ("engine", "prompt-cache")  # these take several
    names = {"model": "--models" if plural else "--model", "dtype": "--dtypes" if plural else "--dtype"}
    for name in ("model", "dtype", "repeats"):
        if value := options.get(name):
            found += [names.get(name, f"--{name}"), value]
    return [*found, "--quick"] if quick else found


def _compression(options: Options, quick: bool, result: Path) -> list[str]:
    found = ["compress", "--report", "--text", str(Path(options["text"]).expanduser()), "--json", str(result)]
    if model := options.get("model"):
        found.append(model)
    if quick:
        found += ["--rows", "weights,kv", "--heal", "0", "--max-tokens", "1500"]
        found += ["--calibration-sequences", "8", "--calibration-length", "128"]
    repeats = options.get("repeats") or ("1" if quick else "")
    return [*found, "--pairs", repeats] if repeats else found


def timeout_seconds(options: Options) -> float:
    return QUICK_SECONDS if is_quick(options) else FULL_SECONDS


def describe(options: Options) -> str:
    """The options in a few words, for a list."""
    words = ["quick" if is_quick(options) else "full"]
    words += [value for name, value in options.items() if name in ("model", "dtype")]
    if "text" in options:
        words.append(Path(options["text"]).name)
    if "repeats" in options:
        words.append(f"{options['repeats']} repeats")
    return ", ".join(words)
