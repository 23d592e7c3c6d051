"""The rounding of weights to int8: what flows into a product is what decides it."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from retrue.training import rounding

BYTE = 255  # the largest activation


@pytest.fixture(scope="module")
def inputs() -> torch.Tensor:
    """What flows into a layer: of 48 numbers, most of what they say is said by a dozen directions."""
    random = torch.Generator().manual_seed(1)
    few = torch.randn(2_000, 12, generator=random) @ torch.randn(12, 48, generator=random)
    return few + 0.2 * torch.randn(2_000, 48, generator=random)


def weights(inputs: int = 48, outputs: int = 20, seed: int = 2) -> torch.Tensor:
    return torch.randn(inputs, outputs, generator=torch.Generator().manual_seed(seed))


def apart(inputs: torch.Tensor, exact: torch.Tensor, used: torch.Tensor) -> float:
    return float((inputs @ (used - exact)).square().mean())


def pairs(small: torch.Tensor) -> NDArray[np.int64]:
    """The sum of the sizes of every two neighbours."""
    whole = np.abs(small.numpy().astype(np.int64))
    return np.add.reduceat(whole, np.arange(0, len(whole), 2), axis=0)


def test_the_product_of_what_flows_in_is_nearer_than_with_each_weight_at_its_nearest(inputs: torch.Tensor) -> None:
    exact = weights()
    steps = rounding.steps(exact)
    small = rounding.rounded(exact, steps, inputs.T @ inputs)
    assert small.dtype == torch.int8
    nearest = (exact / steps).round() * steps
    fresh = inputs[torch.randperm(len(inputs), generator=torch.Generator().manual_seed(3))[:500]]
    assert apart(fresh, exact, small * steps) < 0.5 * apart(fresh, exact, nearest)


def test_where_the_inputs_have_nothing_in_common_each_weight_is_at_its_nearest() -> None:
    exact = weights()
    steps = rounding.steps(exact)
    small = rounding.rounded(exact, steps, 7 * torch.eye(48))
    torch.testing.assert_close(small.float(), (exact / steps).round())


@pytest.mark.parametrize("count", [48, 47, 1])
def test_no_two_neighbours_overflow_16_bits_and_the_steps_are_no_larger_for_it(
    inputs: torch.Tensor, count: int
) -> None:
    exact = weights(count, 500)
    exact[::2] *= torch.linspace(0, 3, 500)
    steps = rounding.steps(exact)
    small = rounding.rounded(exact, steps, inputs[:, :count].T @ inputs[:, :count])
    assert BYTE * pairs(small).max() < 2**15
    assert pairs((exact / steps).round()).max() >= rounding.PAIR - 1
    assert (steps < exact.abs().amax(0) / 64 + 1e-6).all()  # with which single weights would do as much


def test_many_columns_are_rounded_as_one_by_one_and_in_blocks_as_without(
    inputs: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact, gram = weights(), inputs.T @ inputs
    steps = rounding.steps(exact)
    together = rounding.rounded(exact, steps, gram)
    alone = [rounding.rounded(exact[:, [column]], steps[[column]], gram) for column in range(3)]
    assert (torch.cat(alone, dim=1) == together[:, :3]).all()
    monkeypatch.setattr(rounding, "BLOCK", 7)
    assert (rounding.rounded(exact, steps, gram) == together).float().mean() > 0.99  # sums in another order


def test_what_is_always_zero_and_what_few_texts_show_do_no_harm(inputs: torch.Tensor) -> None:
    exact = weights()
    exact[:, 3] = 0
    steps = rounding.steps(exact)
    for gram in (torch.zeros(48, 48), torch.outer(inputs[0], inputs[0])):
        small = rounding.rounded(exact, steps, gram)
        assert (small[:, 3] == 0).all()
        assert (small * steps - exact).abs().max() < 40 * steps.max()
        assert BYTE * pairs(small).max() < 2**15
