"""The int8 weights of a product, rounded together and not each for itself.

Weights that meet the same values can make up for each other: what one loses by rounding, those that are rounded after
it take over, so that the product of what usually flows into it changes least (Frantar et al. 2022, GPTQ, algorithm 1).
"""

import torch
from torch.nn import functional

# CPUs without VNNI add the products of two neighbours, inputs 2i and 2i + 1, in 16 bits, which hold 255 times this.
PAIR = 128
LARGEST = 127  # weight
BLOCK = 128  # inputs after whose rounding all later ones are corrected at once
DAMPING = 0.01  # of the mean square of an input, which is added to each: few texts say little of some directions
LEAST = 1e-12  # of a mean square and of a step, so that what is always zero divides nothing by zero


def steps(weights: torch.Tensor) -> torch.Tensor:
    """The step of each output (outputs,) with which no two neighbours of `weights` (inputs, outputs) exceed PAIR."""
    even = functional.pad(weights.abs(), (0, 0, 0, len(weights) % 2))
    pairs = even[::2] + even[1::2]
    return pairs.amax(0).clamp_min(LEAST) / (PAIR - 1)  # rounding adds half a step to each of the two at most


def rounded(weights: torch.Tensor, steps: torch.Tensor, gram: torch.Tensor) -> torch.Tensor:
    """The weights (inputs, outputs) as int8 numbers of steps.

    `gram` (inputs, inputs) is the sum of x xᵀ over typical inputs x. Inputs with a large mean square come first.
    """
    inputs = len(weights)
    order = gram.diagonal().argsort(descending=True, stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(inputs)
    neighbours = torch.arange(inputs).bitwise_xor(1).clamp_max(inputs - 1)
    pairs = place[neighbours[order]]  # where, in this order, the neighbour of each is; of a last one without, itself
    damped = gram[order][:, order].double()
    damped.diagonal().add_((DAMPING * damped.diagonal().mean()).clamp_min(LEAST))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    spread = torch.linalg.cholesky(inverse, upper=True).float()  # row k: how later weights make up for the kth

    left = weights[order] / steps
    whole = torch.zeros_like(left)
    for first in range(0, inputs, BLOCK):
        last = min(first + BLOCK, inputs)
        lost = torch.empty(last - first, left.shape[1])
        for k in range(first, last):
            room = (PAIR - whole[pairs[k]].abs()).clamp_max(LARGEST)
            whole[k] = left[k].round().clamp(-room, room)
            lost[k - first] = (left[k] - whole[k]) / spread[k, k]
            left[k + 1 : last] -= spread[k, k + 1 : last, None] * lost[k - first]
        left[last:] -= spread[first:last, last:].T @ lost
    return whole[place].to(torch.int8)
