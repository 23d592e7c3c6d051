"""What flows into the products of a classifier on typical texts, from which its int8 copy takes its scales.

Scales that are fixed beforehand make an answer independent of the texts that run beside it; scales taken from whatever
runs, which dynamic quantisation uses, do not. They are made small by smoothing (Xiao et al. 2023, SmoothQuant,
equation 4): part of what is large in a channel of the activations is moved into the weights that it meets.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from retrue.training import anatomy

SITES = ("attend", "merge", "expand", "contract")  # the inputs of a layer's products, in their order
LEAST = 1e-5  # of a channel's largest value, so that a silent one divides nothing by zero
TOGETHER = 1_024  # tokens of a pass at most by which it is told what flows in together

Key = tuple[int, str]  # layer and site


@dataclass(frozen=True)
class Range:
    """The least and the largest value of each channel, (width,) each, the largest weight that a channel meets, and what
    the channels are together: the sum of x xᵀ over some of the tokens, (width, width)."""

    low: NDArray[np.float32]
    high: NDArray[np.float32]
    weight: NDArray[np.float32]
    gram: NDArray[np.float32]

    def smoothing(self, share: float) -> NDArray[np.float32]:
        """What each channel is divided by: `share` of its largeness goes into the weights, 0 for none."""
        if share == 0:
            return np.ones_like(self.low)
        largest = np.maximum(np.maximum(np.abs(self.low), np.abs(self.high)), LEAST)
        raw = largest**share / np.maximum(self.weight, LEAST) ** (1 - share)
        return np.asarray(raw / np.exp(np.log(raw).mean()), np.float32)

    def scale(self, smoothing: NDArray[np.float32]) -> tuple[np.float32, np.uint8]:
        """Scale and zero point with which unsigned bytes hold every smoothed value, zero exactly."""
        low, high = min(0.0, float((self.low / smoothing).min())), max(0.0, float((self.high / smoothing).max()))
        step = np.float32(max(high - low, LEAST) / 255)
        return step, np.uint8(round(-low / step))


Ranges = Mapping[Key, Range]


def measure(model: Any, texts: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> Ranges:
    """The ranges over texts, given as padded token ids and their mask (batch, length) each."""
    blocks = anatomy.of(model).blocks
    meets = [
        {"attend": [b.query, b.key, b.value], "merge": [b.merge], "expand": [b.expand], "contract": [b.contract]}
        for b in blocks
    ]
    low: dict[Key, torch.Tensor] = {}
    high: dict[Key, torch.Tensor] = {}
    gram: dict[Key, torch.Tensor] = {}
    real = torch.empty(0)

    def watch(key: Key, module: nn.Linear) -> Any:
        def look(_: nn.Module, given: tuple[torch.Tensor]) -> None:
            values = given[0][real]
            low[key] = torch.minimum(low.get(key, values.amin(0)), values.amin(0))
            high[key] = torch.maximum(high.get(key, values.amax(0)), values.amax(0))
            some = values[:: -(-len(values) // TOGETHER)]
            gram[key] = gram.get(key, 0) + some.T @ some

        return module.register_forward_pre_hook(look)

    hooks = [watch((number, site), found[site][0]) for number, found in enumerate(meets) for site in SITES]
    try:
        with torch.inference_mode():
            for ids, mask in texts:
                real = mask.bool()
                model(input_ids=ids, attention_mask=mask)
    finally:
        for hook in hooks:
            hook.remove()
    return {
        key: Range(low[key].numpy(), high[key].numpy(), _largest(meets[key[0]][key[1]]), gram[key].numpy())
        for key in low
    }


def _largest(modules: list[nn.Linear]) -> NDArray[np.float32]:
    """The largest weight that each input channel meets."""
    largest = torch.stack([module.weight.detach().abs().amax(0) for module in modules]).amax(0)
    return np.asarray(largest.numpy(), np.float32)
