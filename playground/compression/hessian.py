"""The second moment of a linear's inputs: what a change of its weights costs, and how other weights can make up for it.

GPTQ, AWQ and SparseGPT all work on it; see arXiv 2210.17323 and 2301.00774.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from playground.compression.states import CalibrationStates
from playground.errors import ModelLoadError

_MOST_DAMPING = 1.0


@torch.inference_mode()
def second_moment(states: CalibrationStates, inputs: Callable[[Tensor], Tensor]) -> Tensor:
    """H = mean over tokens of x x^T [K, K], float32, x being what `inputs` makes of the states.

    GPTQ's Hessian but for a factor of 2, which changes nothing in any of the methods. Raises `ModelLoadError` where an
    input is not a finite number.
    """
    total: Tensor | None = None
    for batch in states.batches():
        x = inputs(batch).flatten(0, -2)
        total = x.t() @ x if total is None else total.addmm_(x.t(), x)
    assert total is not None
    if not bool(total.isfinite().all()):
        raise ModelLoadError(
            "the calibration text drives the model to infinite or undefined numbers: its weights are damaged."
        )
    return total.div_(states.num_tokens)


def output_error(difference: Tensor, hessian: Tensor) -> Tensor:
    """tr(D H D^T): squared error of a linear whose weight is off by `difference` D [N, K], mean over tokens."""
    return ((difference @ hessian) * difference).sum()


def inverse_factor(hessian: Tensor, damping: float) -> Tensor:
    """Upper U with U^T U = (H + damping * mean(diag H) * I)^-1, float64.

    Row i of U is, but for its scale, what the columns behind i must take over of an error in column i when all columns
    before i are fixed already. Inputs that were never seen (a zero on the diagonal) count as independent of the others.
    Where rounding has left H without a Cholesky factor, the damping is raised tenfold until it has one.
    """
    wide = hessian.double()
    diagonal = wide.diagonal()
    mean, unseen = diagonal.mean().clamp_min(torch.finfo(torch.float32).tiny), diagonal <= 0
    while True:
        damped = wide.clone()
        damped.diagonal().add_(damping * mean + unseen * mean)
        # H = R R^T with R upper is the Cholesky factor of H read backwards, and then H^-1 = (R^-1)^T R^-1.
        backwards, failed = torch.linalg.cholesky_ex(damped.flip(0, 1))
        if not bool(failed):
            identity = torch.eye(len(wide), dtype=wide.dtype, device=wide.device)
            return torch.linalg.solve_triangular(backwards.flip(0, 1), identity, upper=True)
        if damping >= _MOST_DAMPING:
            raise ModelLoadError("the inputs of a layer have no positive second moment: its weights are damaged.")
        damping = min(_MOST_DAMPING, max(damping, 1e-6) * 10)
