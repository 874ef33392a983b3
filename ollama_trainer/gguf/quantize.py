"""Blocks made anew: scales that fit the values, unlike `grids`, which keeps those that are there.

Every quantiser takes finite float32 values of shape (rows, weights), whose rows are whole blocks,
and gives uint8 of shape (rows, bytes a row). Callers check both, and pass a chunk of rows at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ollama_trainer.gguf.file import TYPE_BY_NAME
from ollama_trainer.gguf.grids import grid_of

if TYPE_CHECKING:
    from torch import Tensor

#: Blocks of Q6_K worked on at once: they stay in the processor's cache while the search goes over
#: them again and again. They are also below 32768 weights, which torch works on with one thread:
#: hundreds of small steps on several threads, each waiting for the last, are 100 times as slow
#: once another program wants a core.
_SLICE_BLOCKS = 120
#: Codes, of -32 to 31, that the largest weight of a group is tried at. Beyond -32 it is clipped,
#: which costs that weight a little and makes the steps of the other fifteen finer.
_TRIED = tuple(-32 + tenths / 10 for tenths in range(-9, 10))
_LARGEST_HALF = 65504.0
#: Added to a float32 below 4 million, leaves no bits for a fraction.
_WHOLE = 1.5 * 2**23


def quantize_q8_0(values: Tensor) -> Tensor:
    """float32 of shape (rows, weights) -> bytes of Q8_0 with scales of its own (absmax / 127)."""
    import torch

    blocks = values.reshape(-1, 32)
    scale = (blocks.abs().amax(1, keepdim=True) / 127).half()
    inverse = torch.where(scale == 0, 0.0, 1 / scale.float())
    codes = (blocks * inverse).round().clamp(-127, 127).to(torch.int8)
    packed = torch.cat((scale.view(torch.uint8), codes.view(torch.uint8)), dim=1)
    return packed.reshape(len(values), -1)


def quantize_q6_k(values: Tensor) -> Tensor:
    """float32 of shape (rows, weights) -> bytes of Q6_K with scales of its own (searched)."""
    import torch

    blocks = values.reshape(-1, 16, 16)
    raw = torch.empty((len(blocks), TYPE_BY_NAME["Q6_K"].n_bytes), dtype=torch.uint8)
    for start in range(0, len(blocks), _SLICE_BLOCKS):
        part = slice(start, start + _SLICE_BLOCKS)
        raw[part] = _q6_k_blocks(blocks[part])
    return raw.reshape(len(values), -1)


def _q6_k_blocks(blocks: Tensor) -> Tensor:
    """float32 of shape (blocks, 16 groups, 16 weights) -> uint8 of shape (blocks, 210)."""
    import torch

    kind = TYPE_BY_NAME["Q6_K"]
    scales = _group_scales(blocks.reshape(-1, 16)).reshape(-1, 16)
    above = _super_scales(scales)
    # Codes are made from the scales as stored, so that their rounding is made up for.
    groups = (scales / above.float()).nan_to_num_(nan=0.0).round_().clamp_(-128, 127)
    stored = (above.float() * groups).unsqueeze(-1)
    codes = _rounded(blocks / stored).clamp_(-32, 31).add_(32)
    # With a scale of zero every code stands for zero; a quotient may be no number there.
    codes = torch.where(stored == 0, 0.0, codes)
    raw = torch.zeros((len(blocks), kind.n_bytes), dtype=torch.uint8)
    raw[:, 192:208] = groups.to(torch.int8).view(torch.uint8)
    raw[:, 208:210] = above.view(torch.uint8)
    return grid_of(kind).with_codes(raw, codes)


def _group_scales(groups: Tensor) -> Tensor:
    """(groups, 16) -> the scale of each group, shape (groups,); zero where all weights are.

    A scale is tried by rounding to codes with it, then replaced by the one of least squares for
    these codes. Errors are weighted by the square of the weight: large ones matter most.
    """
    import torch

    largest = groups.gather(1, groups.abs().argmax(1, keepdim=True))
    # As shares of the largest, weights and trial scales are alike in all groups, and no square
    # falls below what float32 can hold. The groups lie last, so that sums run over whole vectors.
    shares = (groups / largest).nan_to_num_(nan=0.0).T.contiguous()
    cubes = shares**3
    best = torch.zeros(len(groups))
    found = torch.zeros(len(groups))
    for tried in _TRIED:
        codes = _rounded(shares * tried).clamp_(-32, 31)
        along = (cubes * codes).sum(0)
        length = codes.mul_(shares).square_().sum(0)
        scale = along / length
        # What this scale takes off the weighted squared error of all zeros.
        gain = along * scale
        # Never true of the not-a-number that a group of zeros gives.
        better = gain > best
        best = torch.where(better, gain, best)
        found = torch.where(better, scale, found)
    return found * largest.squeeze(1)


def _rounded(values: Tensor) -> Tensor:
    """To the nearest whole number, even at ties, in place; unlike `round_`, with one thread."""
    return values.add_(_WHOLE).sub_(_WHOLE)


def _super_scales(scales: Tensor) -> Tensor:
    """(blocks, 16) -> float16 of shape (blocks, 1) that makes the largest scale -128."""
    import torch

    largest = scales.gather(1, scales.abs().argmax(1, keepdim=True))
    # Subtracted, since a quotient of zero would have a sign, and a block of zeros is zero bytes.
    exact = (0.0 - largest / 128).clamp(-_LARGEST_HALF, _LARGEST_HALF)
    near = exact.half()
    # A smaller one would ask for scales beyond -128. float16 gets coarse below 6e-5, where models'
    # weights have theirs; one more in the last bit is the next number away from zero.
    too_small = near.float().abs() < exact.abs()
    return (near.view(torch.int16) + too_small).view(torch.float16)


QUANTIZERS: dict[str, Callable[[Tensor], Tensor]] = {
    "Q8_0": quantize_q8_0,
    "Q6_K": quantize_q6_k,
}
