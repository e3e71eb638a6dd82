"""`NvmlDevice`: one GPU as its driver sees it, or None where there is no driver, library or permission.

Never imports NVML or torch when it is imported, and never raises: what cannot be read is None. NVML is asked by the
GPU's UUID, since its own numbering ignores CUDA_VISIBLE_DEVICES.
"""

import contextlib
from collections.abc import Sequence
from typing import Any


class NvmlDevice:
    """Asks NVML about one GPU until it is closed."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        """`nvml` is an initialised `pynvml`; it is shut down by `close`."""
        self._nvml = nvml
        self._handle = handle

    @classmethod
    def open(cls, cuda_index: int) -> "NvmlDevice | None":
        """The GPU that this process calls `cuda:<cuda_index>`."""
        nvml = None
        try:
            import pynvml
            import torch

            uuid = nvml_uuid(torch.cuda.get_device_properties(cuda_index).uuid)
            pynvml.nvmlInit()
            nvml = pynvml
            return cls(nvml, nvml.nvmlDeviceGetHandleByUUID(uuid))
        except Exception:  # NVML raises its own classes, torch RuntimeError, a missing library OSError
            if nvml is not None:
                with contextlib.suppress(Exception):
                    nvml.nvmlShutdown()
            return None

    def ask(self, function: str, *arguments: str) -> Any | None:
        """What `nvml.<function>(gpu, *arguments)` says; arguments are names of NVML's constants. None: it cannot."""
        try:
            constants = (getattr(self._nvml, name) for name in arguments)
            return getattr(self._nvml, function)(self._handle, *constants)
        except Exception:  # not supported by this GPU, one that fell off the bus, a driver reloaded underneath
            return None

    def flags(self, names: Sequence[str]) -> int:
        """NVML's constants of these names, together; those that this version does not know are left out."""
        value = 0
        for name in names:
            value |= getattr(self._nvml, name, 0)
        return value

    def close(self) -> None:
        """Let go of NVML."""
        with contextlib.suppress(Exception):
            self._nvml.nvmlShutdown()


def cuda_index(device: str) -> int | None:
    """The CUDA device's number in this process; None for other devices."""
    kind, _, number = str(device).partition(":")
    if kind != "cuda":
        return None
    return int(number) if number.isdecimal() else 0


def nvml_uuid(uuid: object) -> str:
    """NVML names a GPU "GPU-<uuid>"; torch gives the bare uuid."""
    text = str(uuid)
    return text if text.startswith(("GPU-", "MIG-")) else f"GPU-{text}"
