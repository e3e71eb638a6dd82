"""What this machine and installation are: versions, devices, CPU features, kernels chosen, models at hand.

Read by `playground info`, and by the benchmarks, which store it with their numbers. Asks devices only when called,
and reports what it cannot find out as None, never as a guess.
"""

import json
import os
import platform
import subprocess
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "triton", "transformers", "tokenizers", "safetensors", "numpy", "gradio", "sqlmodel", "pydantic")
# The instruction sets that decide how fast the CPU kernels are, as Linux names them.
CPU_FEATURES = (
    "avx2", "fma", "avx512f", "avx512_bf16", "avx512_fp16", "avx512_vnni", "avx_vnni",
    "amx_tile", "amx_bf16", "amx_int8", "asimd", "bf16", "sve",
)  # fmt: skip

# Shapes that packed products are measured with: matrices of a small and of a large model, cut to a few rows.
_OUTPUTS, _INPUTS = 512, (576, 4096)


def collect() -> dict[str, Any]:
    """Everything that `playground info` shows, as plain data for JSON."""
    import kernels

    found_gpus = gpus()
    return {
        "versions": versions(),
        "machine": machine(),
        "gpus": found_gpus,
        "kernels": [asdict(choice) for choice in kernels.explain("cuda" if found_gpus else "cpu")],
        "crossovers": crossovers(),
        "models": bundled_models(),
    }


def versions() -> dict[str, str | None]:
    """Python, this project with its commit, and the libraries that decide results and speed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in ("inference-playground", *PACKAGES):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    found["commit"] = commit()
    return found


def commit() -> str | None:
    """The checkout's commit, with "+" where tracked files differ from it; None outside a checkout."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def machine() -> dict[str, Any]:
    """Processor, cores, instruction sets, memory and the threads that torch would use."""
    import psutil
    import torch

    model, flags = _read_cpuinfo()
    return {
        "system": f"{platform.system()} {platform.release()}",
        "processor": model or platform.processor() or platform.machine(),
        "architecture": platform.machine(),
        "cores_usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cores_logical": os.cpu_count(),
        "cpu_features": [feature for feature in CPU_FEATURES if feature in flags],
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "torch_threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "memory_available_bytes": psutil.virtual_memory().available,
    }


def _read_cpuinfo() -> tuple[str | None, frozenset[str]]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None, frozenset()
    values: dict[str, str] = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        values.setdefault(name.strip(), value.strip())
    return values.get("model name"), frozenset(values.get("flags", values.get("Features", "")).split())


def gpus() -> list[dict[str, Any]]:
    """The GPUs that torch can use; an empty list where there is none."""
    import torch

    if not torch.cuda.is_available():
        return []
    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        found.append(
            {
                "device": f"cuda:{index}",
                "name": properties.name,
                "capability": f"{properties.major}.{properties.minor}",
                "memory_bytes": total,
                "memory_free_bytes": free,
            }
        )
    return found


def crossovers() -> list[dict[str, Any]]:
    """Up to how many rows packed products beat a matrix written out on the CPU: measured now, in some 0.1 s."""
    from playground.quantization.crossover import measured_crossover
    from playground.quantization.layouts import Int4Groups, Int8Rows

    return [
        asdict(measured_crossover(layout, _OUTPUTS, inputs)) for layout in (Int8Rows, Int4Groups) for inputs in _INPUTS
    ]


def bundled_models() -> list[dict[str, Any]]:
    """The models that came with the project: each folder of `assets/models` with a config and weights."""
    from playground.models.bundled import BUNDLED_MODEL
    from playground.models.config import DecoderConfig

    found = []
    for config_file in sorted(Path(BUNDLED_MODEL).parent.glob("*/config.json")):
        weights = sorted(config_file.parent.glob("*.safetensors"))
        if not weights:
            continue
        config = DecoderConfig.from_folder(config_file.parent)
        found.append(
            {
                "name": config_file.parent.name,
                "path": str(config_file.parent),
                "default": config_file.parent == Path(BUNDLED_MODEL),
                "architecture": config.architecture,
                "parameters": config.num_parameters,
                "layers": config.num_layers,
                "weights_bytes": sum(path.stat().st_size for path in weights),
            }
        )
    return found


def to_json(data: dict[str, Any]) -> str:
    """`data` as indented JSON; paths and other plain objects become their text."""
    return json.dumps(data, indent=2, default=str, ensure_ascii=False)


def render(data: dict[str, Any]) -> None:
    """Print `collect()`'s result as tables."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    here = data["machine"]
    rows = {
        "Processor": f"{here['processor']}, {here['cores_usable']} of {here['cores_logical']} cores usable",
        "CPU features": " ".join(here["cpu_features"]) or "—",
        "Memory": f"{here['memory_bytes'] / 2**30:.1f} GiB, {here['memory_available_bytes'] / 2**30:.1f} GiB available",
        "torch on CPU": f"{here['torch_cpu_capability']}, {here['torch_threads']} threads",
        "GPU": "\n".join(_gpu_line(gpu) for gpu in data["gpus"]) or "none that torch can use",
        "Versions": ", ".join(f"{name} {version}" for name, version in data["versions"].items() if version),
        "Not installed": ", ".join(name for name, version in data["versions"].items() if version is None) or "—",
    }
    table = Table(show_header=False, title="This machine", title_justify="left")
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table)

    table = Table("Runs as", "Ops", "Why", title="Kernels", title_justify="left")
    ops: dict[tuple[str, str], list[str]] = {}
    for choice in data["kernels"]:
        ops.setdefault((choice["backend"], choice["reason"]), []).append(choice["op"])
    for (backend, reason), names in ops.items():
        table.add_row(backend, ", ".join(names), reason)
    console.print(table)

    table = Table(
        "Layout", "Matrix", "Packed up to", "µs packed / written out, by rows",
        title="Quantized weights on the CPU, measured now", title_justify="left",
    )  # fmt: skip
    for one in data["crossovers"]:
        times = ", ".join(
            f"{rows}: {one['packed_us'][rows]:.0f}/{one['written_us'][rows]:.0f}" for rows in one["packed_us"]
        )
        table.add_row(one["layout"], f"{one['outputs']} x {one['inputs']}", f"{one['rows']} rows", times)
    console.print(table)

    table = Table("Model", "Parameters", "Layers", "Weights", "Folder", title="Bundled models", title_justify="left")
    for model in data["models"]:
        name = f"{model['name']} (default)" if model["default"] else model["name"]
        size = f"{model['weights_bytes'] / 1e6:.1f} MB"
        table.add_row(name, f"{model['parameters'] / 1e6:.2f} M", str(model["layers"]), size, model["path"])
    if not data["models"]:
        table.add_row("none: this checkout has no assets/models", "—", "—", "—", "—")
    console.print(table)


def _gpu_line(gpu: dict[str, Any]) -> str:
    memory = f"{gpu['memory_free_bytes'] / 2**30:.1f} of {gpu['memory_bytes'] / 2**30:.1f} GiB free"
    return f"{gpu['device']}: {gpu['name']}, compute capability {gpu['capability']}, {memory}"
