"""How Triton kernels are judged: against float64, losing at most twice what eager torch loses in the same dtype."""

import torch
from torch import Tensor

from kernels.triton.arch import INTERPRETED

DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
"""Where these tests run: the interpreter works on CPU tensors, compiled kernels on the GPU."""

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# One step of the dtype at 1.0: what rounding the result alone may cost.
ULP = {torch.float64: 2**-52, torch.float32: 2**-23, torch.float16: 2**-10, torch.bfloat16: 2**-7}


def randn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0, scale: float = 1.0) -> Tensor:
    """Normal numbers, the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator) * scale).to(dtype).to(DEVICE)


def assert_as_good_as_eager(got: Tensor, eager: Tensor, exact: Tensor) -> None:
    """max|got - exact| <= 2 max|eager - exact| + one rounding of the largest value.

    `exact` is the definition in float64 on the same (rounded) inputs, `eager` plain torch in the dtype of `got`.
    """
    assert got.dtype == eager.dtype and got.shape == exact.shape
    exact = exact.double().cpu()
    assert torch.equal(torch.isfinite(got).cpu(), torch.isfinite(exact)), (
        "finite where the definition is not, or not where it is"
    )
    finite = torch.isfinite(exact)
    if not finite.any():
        return
    error = (got.double().cpu() - exact)[finite].abs().max().item()
    allowed = 2 * (eager.double().cpu() - exact)[finite].abs().max().item()
    allowed += ULP[got.dtype] * exact[finite].abs().max().item()
    assert error <= allowed, f"error {error:.3g} exceeds {allowed:.3g}"
