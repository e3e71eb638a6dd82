"""What is stored with every recording of the machine and the versions, and shown beside its replay."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from playground import info
from playground.config import EngineConfig


@cache
def _machine() -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    return info.machine(), info.versions()


def describe(config: EngineConfig) -> dict[str, Any]:
    """The device by its name, the system, the versions. Names no host and no user."""
    machine, versions = _machine()
    gpus = [gpu for gpu in info.gpus() if config.device.startswith("cuda")]
    index = int(config.device.partition(":")[2] or 0) if gpus else 0
    if gpus and index < len(gpus):
        device = str(gpus[index]["name"])
    else:
        device = f"{machine['processor']}, {machine['cores_usable']} cores"
    shown = ("inference-playground", "torch")
    return {
        "machine": device,
        "system": machine["system"],
        "architecture": machine["architecture"],
        "memory_bytes": machine["memory_bytes"],
        "torch_threads": machine["torch_threads"],
        "versions": dict(versions),
        "summary": ", ".join(f"{name} {versions[name]}" for name in shown if versions.get(name)),
    }
