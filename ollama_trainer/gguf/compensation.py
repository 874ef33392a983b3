"""Error-compensated rounding: each column's rounding error is made good by the columns after it.

A layer computes y = W x, so what matters of a rounding error E = W - Q is how it acts on the inputs
that the layer really gets: E H E' with H = X'X over them. With H = (F + I) D (F + I)', F strictly
upper triangular and D diagonal, rounding column by column to

    Q[:, k] = round(W[:, k] + sum over j < k of E[:, j] F[j, k])

makes the sum of squares as small as a rounding in one pass can (GPTQ, Frantar et al. 2022; in this
form QuIP, Chee et al. 2023). Here the grid is the base's own and never changes, so the columns may
be taken in any order: those with the strongest inputs first, while there are many left to make
their errors good.

A part of the rounding is left to chance (`dither`): H knows the inputs of some thousand tokens
only, and what it does not know would be rounded away without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ollama_trainer.errors import ExportError

if TYPE_CHECKING:
    from torch import Generator, Tensor

#: Columns between two matrix products; within them each column waits for the one before it.
_BLOCK = 64
#: How often damping is raised tenfold where H is too near to singular for float32.
_ATTEMPTS = 4


@dataclass(frozen=True, slots=True)
class Feedback:
    """How the errors of earlier columns are made good by later ones, for one input of a layer."""

    #: (columns,): the order in which they are rounded.
    order: Tensor
    #: float32, (columns, columns), in that order: F, strictly upper triangular.
    factor: Tensor


def feedback_of(second_moment: Tensor, damping: float) -> Feedback:
    """The feedback for a layer's inputs.

    Args:
        second_moment: float32, (columns, columns): H, symmetric.
        damping: share of the mean diagonal that is added to the diagonal.

    Raises:
        ExportError: H holds values that are no numbers.
    """
    import torch

    order = second_moment.diagonal().argsort(descending=True)
    # Turned round, an ordinary Cholesky factor becomes the upper triangular one that is needed.
    turned = second_moment[order.flip(0)][:, order.flip(0)]
    diagonal = turned.diagonal()
    added = damping * float(diagonal.mean()) or 1.0
    for _ in range(_ATTEMPTS):
        diagonal += added
        lower, failed = torch.linalg.cholesky_ex(turned)
        if not failed and bool(torch.isfinite(lower.diagonal()).all()):
            break
        added *= 10
    else:
        raise ExportError(
            "The statistics of a layer's inputs are no second moments",
            "Use rounding = stochastic, which needs none.",
        )
    del turned
    upper = lower.flip(0, 1)
    factor = upper.div_(upper.diagonal().clone())
    factor.diagonal().zero_()
    return Feedback(order, factor)


def round_compensated(
    delta: Tensor,
    scale: Tensor,
    bounds: tuple[Tensor, Tensor],
    feedback: Feedback,
    dither: float,
    generator: Generator,
) -> Tensor:
    """Whole numbers of grid steps in the place of wished changes of weights.

    Args:
        delta: float32, (rows, columns): the wished change of each weight.
        scale: float32, (rows, columns): the size of a step; zero where there is one value only.
        bounds: the lowest and the highest number of steps, each (rows, columns).
        feedback: of the layer's input.
        dither: 0 rounds to nearest, 1 with a probability equal to the fraction.
        generator: consumed by one number a weight.

    Returns:
        float32, (rows, columns).
    """
    import torch

    order, factor = feedback.order, feedback.factor
    home = delta.device
    noise = torch.rand(delta.shape, generator=generator)

    def by_column(tensor: Tensor) -> Tensor:
        # Columns become rows of memory: the loop below reads them one after the other.
        return tensor.T.to(factor.device)[order].contiguous()

    wished, size = by_column(delta), by_column(scale)
    low, high = by_column(bounds[0]), by_column(bounds[1])
    threshold = by_column(noise).sub_(0.5).mul_(dither).add_(0.5)
    inverse = torch.where(size == 0, 0.0, 1 / size)
    steps, errors = torch.empty_like(wished), torch.empty_like(wished)
    n = len(wished)
    for start in range(0, n, _BLOCK):
        stop = min(start + _BLOCK, n)
        aim = torch.addmm(wished[start:stop], factor[:start, start:stop].T, errors[:start])
        own = factor[start:stop, start:stop].T.contiguous()
        for i in range(stop - start):
            k = start + i
            value = torch.addmv(aim[i], errors[start:k].T, own[i, :i]) if i else aim[i]
            whole = torch.addcmul(threshold[k], value, inverse[k]).floor_()
            torch.clamp(whole, low[k], high[k], out=steps[k])
            # The error counts from what was wished for, not from what was made of it.
            torch.addcmul(wished[k], steps[k], size[k], value=-1, out=errors[k])
    result = torch.empty_like(steps)
    result[order] = steps
    return result.T.to(home)
