"""What the GPU at hand can do, as one small value that configuration pickers take.

Nothing is probed at import time. Under Triton's interpreter the architecture is `INTERPRETER`; code that compiles for
a GPU that is not there says so with `pretending`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import torch
import triton

INTERPRETED: bool = bool(triton.knobs.runtime.interpret)
"""Whether kernels run in Triton's interpreter: decided once, by TRITON_INTERPRET when this module is first imported."""

_KIB = 1024
_SHARED_LIMITS = {80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 103: 227, 110: 227, 120: 99, 121: 99}


@dataclass(frozen=True, slots=True)
class Arch:
    """One GPU architecture: compute capability times ten (sm90 is 90) and its number of multiprocessors."""

    cc: int
    num_sms: int

    @property
    def interpreted(self) -> bool:
        return self.cc == 0

    @property
    def shared_limit(self) -> int:
        """Bytes of shared memory that one program may use (CUDA programming guide, per-block opt-in maximum)."""
        return _SHARED_LIMITS.get(self.cc, 99) * _KIB

    @property
    def large_shared(self) -> bool:
        """Data-center parts (163 KiB and more) against consumer parts (99 KiB)."""
        return self.shared_limit > 100 * _KIB

    @property
    def has_fp8(self) -> bool:
        """Whether the hardware converts to and from fp8 e4m3."""
        return self.cc >= 89

    @property
    def has_wgmma(self) -> bool:
        return self.cc == 90


INTERPRETER = Arch(cc=0, num_sms=4)
KNOWN = (Arch(80, 108), Arch(86, 82), Arch(89, 128), Arch(90, 132), Arch(100, 148), Arch(120, 170))
"""What kernels are compiled for ahead of time: A100, RTX 3090, RTX 4090, H100 and H200, B200, RTX 5090."""

_pretended: Arch | None = None


@contextmanager
def pretending(arch: Arch) -> Iterator[None]:
    """Within this context `current` answers with `arch`, whatever is there. For compiling ahead of time and tests."""
    global _pretended
    before, _pretended = _pretended, arch
    try:
        yield
    finally:
        _pretended = before


def current(device: torch.device) -> Arch:
    """The architecture that kernels on tensors of this device run on. Raises ValueError where none can."""
    if _pretended is not None:
        return _pretended
    if INTERPRETED:
        return INTERPRETER
    if device.type != "cuda":
        raise ValueError(f"Triton kernels need tensors on an NVIDIA GPU, these are on {device.type!r}.")
    return _probe(torch.cuda.current_device() if device.index is None else device.index)


@cache
def _probe(index: int) -> Arch:
    properties = torch.cuda.get_device_properties(index)
    return Arch(properties.major * 10 + properties.minor, properties.multi_processor_count)
