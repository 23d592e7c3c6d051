import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from retrue.training import batches
from retrue.training.tokens import Tokens


def texts(lengths: list[int]) -> Tokens:
    """Texts of these lengths, whose tokens are their row's number and one more."""
    ids = np.concatenate([np.full(length, row + 1) for row, length in enumerate(lengths)])
    return Tokens(ids.astype(np.int32), np.concatenate([[0], np.cumsum(lengths)]))


def test_steps_hold_every_row_once_in_another_order_for_another_seed() -> None:
    lengths = np.random.default_rng(0).integers(1, 200, 1000)
    found = [batches.steps(np.arange(1000), lengths, 16, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert [len(rows) for rows in found[0]].count(16) == 62
    assert sorted(np.concatenate(found[0])) == list(range(1000))
    assert [rows.tolist() for rows in found[0]] == [rows.tolist() for rows in found[1]]
    assert [rows.tolist() for rows in found[0]] != [rows.tolist() for rows in found[2]]


@pytest.mark.parametrize("longest", [40, 200, 512])
def test_less_than_a_twentieth_is_padding(longest: int) -> None:
    # Lengths as reviews have them, cut at the longest: many at the limit, a tail below.
    lengths = np.minimum(np.random.default_rng(0).lognormal(5.4, 0.7, 5_000).astype(int) + 3, longest)
    fed = sum(
        len(part) * lengths[part].max()
        for rows in batches.steps(np.arange(5_000), lengths, 32, np.random.default_rng(1))
        for part in batches.passes(rows, lengths, 8_192)
    )
    assert 1 - lengths.sum() / fed < 0.05


@given(st.lists(st.integers(1, 300), min_size=1, max_size=60), st.integers(1, 2_000))
def test_passes_keep_the_budget_and_lose_no_row(lengths: list[int], budget: int) -> None:
    found = batches.passes(np.arange(len(lengths)), np.array(lengths), budget)
    assert sorted(np.concatenate(found)) == list(range(len(lengths)))
    assert all(len(part) == 1 or len(part) * max(lengths[row] for row in part) <= budget for part in found)


def test_a_pass_is_as_wide_as_its_longest_text_and_has_no_mask_where_all_are_as_long() -> None:
    tokens = texts([2, 4, 4])
    ids, mask = batches.padded(tokens, [0, 1], 9, torch.device("cpu"))
    assert ids.tolist() == [[1, 1, 9, 9], [2, 2, 2, 2]]
    assert mask is not None
    assert mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert batches.padded(tokens, [1, 2], 9, torch.device("cpu"))[1] is None
