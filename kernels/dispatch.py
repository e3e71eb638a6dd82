"""Which implementation of an op runs, and why. Decides by name and device; never probes a GPU at import time."""

import importlib.util
from dataclasses import dataclass

import torch

BACKENDS = ("auto", "torch", "reference", "triton")
OPS = (
    "flash_attention", "paged_attention", "merge_state", "rope_and_write", "write_kv", "copy_blocks", "rms_norm",
    "layer_norm", "rope", "gated_activation", "quant_linear", "sample", "verify",
)  # fmt: skip
_NO_TRITON = "backend='triton' is not available yet in this version: use 'auto', 'torch' or 'reference'."


@dataclass(frozen=True)
class Choice:
    """One op's implementation and the reason it was chosen."""

    op: str
    backend: str
    reason: str


def choose(backend: str, device: torch.device | None = None) -> str:
    """The implementation for a `backend=` argument and the device of an op's tensors. Raises ValueError, one sentence.

    "auto" is Triton on an NVIDIA GPU that can run it and torch elsewhere. An op without `device` has no Triton version.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r} is not known: use one of {', '.join(BACKENDS)}.")
    if device is None:
        if backend == "triton":
            raise ValueError(_NO_TRITON)
        return "torch" if backend == "auto" else backend
    if backend == "auto":
        return "triton" if device.type == "cuda" and why_not_triton("cuda", device.index) is None else "torch"
    if backend == "triton" and (reason := why_not_triton(device.type, device.index)) is not None:
        raise ValueError(f"backend='triton' cannot run here: {reason}; use 'auto', 'torch' or 'reference'.")
    return backend


def why_not_triton(kind: str, index: int | None) -> str | None:
    """The reason why Triton kernels cannot run on tensors of this device, None where they can. Asked once a device."""
    if (kind, index) not in _asked:
        _asked[kind, index] = _ask(kind, index)
    return _asked[kind, index]


# What `torch.compiler.assume_constant_result` would set; calling it imports all of torch._dynamo, 1 to 3 seconds.
why_not_triton._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _ask(kind: str, index: int | None) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if kind != "cuda":
        from kernels.triton.arch import INTERPRETED  # not before someone asks: importing Triton takes half a second

        return None if INTERPRETED else f"Triton kernels need tensors on an NVIDIA GPU, these are on {kind!r}"
    if torch.version.hip is not None:
        return "the kernels are written and compiled for NVIDIA GPUs, this one is AMD's"
    if not torch.cuda.is_available():
        return "torch finds no NVIDIA GPU here"
    major, minor = torch.cuda.get_device_capability(index)
    return None if major >= 8 else f"the kernels need compute capability 8.0 or later, this GPU has {major}.{minor}"


_asked: dict[tuple[str, int | None], str | None] = {}


def explain(device: torch.device | str = "cpu") -> list[Choice]:
    """What each op runs on tensors of this device, and why."""
    device = torch.device(device)
    if device.type == "cpu":
        reason = "a CPU runs torch's own kernels in as few calls as possible"
        if torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported():
            reason += "; this one has native bfloat16, so linear layers are prepacked"
        return [Choice(op, "torch", reason) for op in OPS]
    why_not = why_not_triton(device.type, device.index)
    if why_not is not None:
        return [Choice(op, "torch", f"{why_not}; torch's own kernels run on any device") for op in OPS]
    return [Choice(op, "triton", "an NVIDIA GPU that Triton compiles for") for op in OPS]
