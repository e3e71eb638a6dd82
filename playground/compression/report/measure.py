"""Measures the rows of the report: perplexity by paired differences, bytes, load time, decode speed in pairs.

Quality is measured in float32, so that nothing but the method shows; size and speed in the dtype that the checkpoint
is stored in. Owns the order of measurements and the shape of the result.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, cast

import torch
from torch import Tensor

from playground import Engine, EngineConfig, SamplingParams, info
from playground.compression.calibration import Calibration
from playground.compression.perplexity import (
    decoder_scorer,
    encode_text,
    engine_scorer,
    paired_difference,
    perplexity,
    read_text,
    text_nlls,
)
from playground.compression.pipeline import METHODS as FILE_METHODS
from playground.compression.pipeline import compress
from playground.compression.pruning import Pruning, prune
from playground.compression.report.goals import Goal, check_goals
from playground.compression.report.variants import GROUPS, Variant, variants_for
from playground.errors import ConfigError, PlaygroundError
from playground.models.bundled import BUNDLED_MODEL
from playground.models.loader import load_model, read_config, resolve_model_path
from playground.models.tokenizer import load_tokenizer

Say = Callable[[str], None]
CALIBRATED = ("gptq", "awq")
BATCHES = {1: 192, 16: 48}
"""Requests at once -> tokens that each generates."""
PROMPT = 32

DEFINITIONS = {
    "perplexity": "exp of the mean of -ln p over all tokens of the text but the first, in float32. Windows of {window} "
    "tokens start every {stride}; a token counts in the first window that holds it, and a window's first token never.",
    "change": "Perplexity against the unchanged model's on the same tokens: exp of the mean difference of the tokens' "
    "-ln p, minus 1, with its 95 % interval. z is that mean over its standard error; the differences of tokens are "
    "taken as independent.",
    "memory": "Bytes of the weights as the engine holds them, in the dtype of the checkpoint where they are not "
    "quantized; in percent of the unchanged model's.",
    "load": "Seconds from the files to a model that runs; quantizing at load is part of it.",
    "decode": "Tokens per second after the first token, the sum over all requests, 1 and 16 of them at once, over the "
    "unchanged model's: median of pairs measured one directly after the other, and their range.",
    "healing": "Distillation from the unchanged model on the calibration text, which is not the text measured on.",
}


@dataclass(frozen=True)
class ReportPlan:
    """One run of the report."""

    model: str | None = None
    """None is the bundled one."""
    text: Path | None = None
    """What is measured on; the model must not have seen it."""
    calibration: Calibration = field(default_factory=Calibration)
    rows: tuple[str, ...] = ()
    """Groups of rows; empty is all."""
    heal: int = 60
    max_tokens: int = 30_000
    """Most tokens of the text."""
    window: int = 512
    pairs: int = 5

    def __post_init__(self) -> None:
        if self.text is None:
            raise ConfigError(
                "--report needs --text FILE: a text to measure on that the model has not been trained on."
            )
        if self.heal < 0 or self.pairs < 1 or self.max_tokens < 2:
            raise ConfigError("--heal takes 0 or more steps, --pairs at least 1, --max-tokens at least 2.")


def run_report(plan: ReportPlan, say: Say = print) -> dict[str, Any]:
    """Measure every row. A row that fails says why and the others go on; `say` hears one line a row."""
    folder = resolve_model_path(plan.model or str(BUNDLED_MODEL))
    config = read_config(folder)
    rows = variants_for(config, plan.rows, plan.heal)
    with tempfile.TemporaryDirectory(prefix="playground-report-", ignore_cleanup_errors=True) as work:
        bench = _Bench(plan, folder, Path(work))
        results = []
        timed = [variant for variant in rows if variant.timed]
        total = len(rows) + len(timed)
        for number, variant in enumerate(rows, start=1):
            say(f"{number} of {total}: {variant.label}")
            results.append(bench.row(variant))
        by_key = {result["key"]: result for result in results if result["error"] is None}
        for number, variant in enumerate(timed, start=len(rows) + 1):
            say(f"{number} of {total}: {variant.label}, decode speed")
            if variant.key in by_key:
                by_key[variant.key] |= bench.speed(variant)
        return {
            "report": "compression",
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "definitions": {
                name: text.format(window=plan.window, stride=plan.window // 2) for name, text in DEFINITIONS.items()
            },
            "versions": info.versions(),
            "machine": info.machine(),
            "model": {"name": folder.name, "parameters": config.num_parameters, "dtype": config.torch_dtype},
            "text": {"name": bench.text_name, "tokens": len(bench.ids)},
            "calibration": {
                "text": [file.name for file in plan.calibration.files] or "the model's own writing",
                "sequences": plan.calibration.sequences,
                "length": plan.calibration.length,
            },
            "groups": GROUPS,
            "base": bench.base_row(),
            "rows": results,
            "goals": [vars(goal) for goal in bench.goals(results)],
        }


class _Bench:
    """The unchanged model's numbers, and every row against them."""

    def __init__(self, plan: ReportPlan, folder: Path, work: Path) -> None:
        assert plan.text is not None
        self.plan, self.folder, self.work = plan, folder, work
        self.text_name = plan.text.name
        self.ids = encode_text(load_tokenizer(folder), read_text(plan.text))[: plan.max_tokens]
        self.nlls: dict[str, Tensor] = {}
        self._removed: dict[str, tuple[int, ...]] = {}
        self._folders: dict[str, Path] = {}
        self.base_nlls = self._decoder_nlls(folder)
        self._base_engine_nlls: Tensor | None = None
        self._base_rates: dict[int, list[float]] = {batch: [] for batch in BATCHES}
        self.base_bytes, self.base_load = self._load(Variant("base", "weights", "unchanged"), folder)

    def base_row(self) -> dict[str, Any]:
        rates = {f"decode_{batch}": median(found) if found else None for batch, found in self._base_rates.items()}
        return {
            "label": "unchanged",
            "perplexity": perplexity(self.base_nlls),
            "memory_bytes": self.base_bytes,
            "load_seconds": self.base_load,
            **rates,
        }

    def row(self, variant: Variant) -> dict[str, Any]:
        head = {"key": variant.key, "group": variant.group, "label": variant.label}
        started = time.perf_counter()
        try:
            return {**head, **self._measure(variant), "error": None, "seconds": time.perf_counter() - started}
        except PlaygroundError as error:
            return {**head, "error": str(error), "seconds": time.perf_counter() - started}

    def goals(self, results: Sequence[dict[str, Any]]) -> list[Goal]:
        return check_goals({row["key"]: row for row in results if row["error"] is None}, self.nlls)

    def _measure(self, variant: Variant) -> dict[str, Any]:
        folder, facts = self._made(variant)
        self._folders[variant.key] = folder
        if variant.kv_cache_dtype is not None:
            nlls, base = self._engine_nlls(variant.kv_cache_dtype), self._engine_base()
        else:
            nlls, base = self._decoder_nlls(folder, variant), self.base_nlls
        self.nlls[variant.key] = nlls - base
        difference = paired_difference(nlls, base)
        size, seconds = self._load(variant, folder)
        low, high = difference.interval
        return {
            "perplexity": perplexity(nlls),
            "change": difference.relative,
            "change_low": low,
            "change_high": high,
            "z": difference.z,
            "memory_bytes": size,
            "memory_share": size / self.base_bytes,
            "load_seconds": seconds,
            **facts,
        }

    def _made(self, variant: Variant) -> tuple[Path, dict[str, Any]]:
        """The folder of the variant, and what making it told; the original's for what is done at load."""
        target = self.work / variant.key
        if variant.pruning is not None:
            pruned = prune(self.folder, self._with_layers(variant.pruning), target, self.plan.calibration)
            if pruned.removed_layers:
                self._removed[variant.pruning.layers_by] = tuple(pruned.removed_layers)
            before, after = pruned.parameters
            kv_before, kv_after = pruned.kv_bytes_per_token
            return target, {
                "parameters_share": after / before,
                "kv_bytes_per_token": kv_after,
                "kv_share": kv_after / kv_before,
                "zeros": pruned.zeros,
                "removed_layers": pruned.removed_layers,
            }
        quantization = variant.quantization
        if quantization is not None and quantization.method in CALIBRATED:
            assert quantization.method in FILE_METHODS
            compress(self.folder, quantization, target, calibration=self.plan.calibration)
            return target, {}
        return self.folder, {}

    def _with_layers(self, pruning: Pruning) -> Pruning:
        """Layers that an earlier row has chosen in the same way are not searched for again: that takes minutes."""
        if pruning.method != "prune-layers":
            return pruning
        return replace(pruning, layers=self._removed.get(pruning.layers_by, ()))

    def _at_load(self, variant: Variant | None) -> Any:
        """The quantization that loading does; None where files hold it already."""
        quantization = variant.quantization if variant is not None else None
        return None if quantization is None or quantization.method in CALIBRATED else quantization

    def _decoder_nlls(self, folder: Path, variant: Variant | None = None) -> Tensor:
        loaded = load_model(folder, dtype=torch.float32, quantization=self._at_load(variant))
        with torch.inference_mode():
            return text_nlls(decoder_scorer(loaded.model), self.ids, self.plan.window)

    def _engine_nlls(self, kv_cache_dtype: str) -> Tensor:
        config = EngineConfig(
            model=str(self.folder), dtype="float32", kv_cache_dtype=cast(Any, kv_cache_dtype), prefix_caching=False
        )
        with Engine(config) as engine:
            return text_nlls(engine_scorer(engine), self.ids, self.plan.window)

    def _engine_base(self) -> Tensor:
        if self._base_engine_nlls is None:
            self._base_engine_nlls = self._engine_nlls("float32")
        return self._base_engine_nlls

    def _load(self, variant: Variant, folder: Path) -> tuple[int, float]:
        """Bytes of the weights in memory, and the seconds that loading takes: the median of three loads."""
        seconds = []
        for _ in range(3):
            started = time.perf_counter()
            loaded = load_model(folder, quantization=self._at_load(variant))
            seconds.append(time.perf_counter() - started)
        return loaded.weights_bytes, median(seconds)

    def speed(self, variant: Variant) -> dict[str, Any]:
        """Of a row that has been made. Measured after all rows: then nothing else of the report runs beside it."""
        try:
            return self._speed(variant)
        except PlaygroundError as error:
            return {"error": str(error)}

    def _speed(self, variant: Variant) -> dict[str, Any]:
        found: dict[str, Any] = {}
        # Two engines of one configuration differ by some per cent, so the unchanged model gets a new one for each row.
        with _engine(self.folder) as base, _engine(self._folders[variant.key], self._at_load(variant)) as engine:
            for batch in BATCHES:
                for each in (base, engine):
                    _decode_rate(each, batch)  # what is laid out on first use is no part of a pair
                ratios = []
                for pair in range(self.plan.pairs):
                    turns = (base, engine) if pair % 2 else (engine, base)
                    rates = {id(each): _decode_rate(each, batch) for each in turns}
                    ratios.append(rates[id(engine)] / rates[id(base)])
                    self._base_rates[batch].append(rates[id(base)])
                found[f"speedup_{batch}"] = median(ratios)
                found[f"speedup_{batch}_range"] = [min(ratios), max(ratios)]
        return found


def _engine(folder: Path, quantization: Any = None) -> Engine:
    return Engine(EngineConfig(model=str(folder), quantization=quantization, max_num_seqs=16, prefix_caching=False))


def _decode_rate(engine: Engine, batch: int) -> float:
    """Tokens per second of so many equal requests after their first tokens."""
    params = SamplingParams(max_tokens=BATCHES[batch], temperature=0, ignore_eos=True)
    vocabulary = engine.model_config.vocab_size
    prompts = [[(31 * row + 7 * place + 5) % vocabulary for place in range(PROMPT)] for row in range(batch)]
    results = engine.generate(prompts, params)
    rate = 0.0
    for result in results:
        assert result.metrics.time_per_output_token is not None, result.error
        rate += 1 / result.metrics.time_per_output_token
    return rate
