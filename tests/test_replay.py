"""An epoch mixes old and new rows in the share that was asked for, as far as the rows allow it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrue.replay import MOST, draws, epoch


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng([seed, 0])


def mixed(base: int, recent: int) -> np.ndarray:
    """Marks of so many base and recent rows, in no order."""
    return rng(9).permutation(np.arange(base + recent) >= base)


counts = st.integers(0, 60)
shares = st.floats(0, 1)


@given(counts, counts, shares, st.integers(1, 6), st.integers(0, 9))
def test_an_epoch_has_as_many_draws_as_rows_and_no_row_too_often(
    base: int, recent: int, share: float, most: int, seed: int
) -> None:
    marks = mixed(base, recent)
    rows = epoch(marks, share, rng(seed), most)
    assert len(rows) == base + recent
    times = np.bincount(rows, minlength=len(marks))
    for kind in (times[marks], times[~marks]):
        assert not len(kind) or (kind.max() - kind.min() <= 1 and kind.max() <= most)
    assert (times[~marks].sum(), times[marks].sum()) == draws(base, recent, share, most)


@given(st.integers(1, 60), st.integers(1, 60), shares, st.integers(1, 6))
def test_the_share_is_met_unless_a_row_would_be_drawn_too_often(
    base: int, recent: int, share: float, most: int
) -> None:
    old, new = draws(base, recent, share, most)
    met = abs(old - share * (base + recent)) <= 0.5
    if not met:
        assert new == most * recent if old > share * (base + recent) else old == most * base
    assert met or max(share * (base + recent) / base, (1 - share) * (base + recent) / recent) > most


@pytest.mark.parametrize("share", [None, -1.0, -0.01])
@given(base=counts, recent=counts)
def test_without_a_share_every_row_comes_once(share: float | None, base: int, recent: int) -> None:
    assert sorted(epoch(mixed(base, recent), share, rng())) == list(range(base + recent))


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("base", "recent"), [(0, 12), (12, 0), (0, 0)])
def test_without_rows_of_one_kind_every_row_comes_once(share: float, base: int, recent: int) -> None:
    assert sorted(epoch(mixed(base, recent), share, rng())) == list(range(base + recent))


@pytest.mark.parametrize(
    ("base", "recent", "share", "found"),
    [
        (900, 100, 0.75, (750, 250)),
        (900, 100, 0.5, (600, 400)),  # each recent row four times; base rows fill up
        (900, 100, 0.0, (600, 400)),
        (500, 500, 0.0, (0, 1_000)),
        (500, 500, 1.0, (1_000, 0)),
        (100, 900, 0.9, (400, 600)),  # the other way round
        (99_900, 100, 0.5, (99_600, 400)),
    ],
)
def test_few_new_rows_are_repeated_up_to_a_limit(base: int, recent: int, share: float, found: tuple[int, int]) -> None:
    assert draws(base, recent, share) == found
    assert MOST == 4


def test_over_many_epochs_all_base_rows_are_drawn_about_equally_often() -> None:
    marks = mixed(400, 100)
    times = sum(np.bincount(epoch(marks, 0.6, np.random.default_rng([1, n])), minlength=500) for n in range(200))
    assert (times[~marks].sum(), times[marks].sum()) == (200 * 300, 200 * 200)
    # 200 draws with a chance of 3 in 4: six standard deviations are 37.
    assert abs(times[~marks] - 150).max() < 37
    assert set(times[marks]) == {400}


def test_the_same_seed_draws_the_same_rows_and_another_one_others() -> None:
    marks = mixed(80, 20)
    assert np.array_equal(epoch(marks, 0.5, rng(3)), epoch(marks, 0.5, rng(3)))
    assert not np.array_equal(epoch(marks, 0.5, rng(3)), epoch(marks, 0.5, rng(4)))
    assert not np.array_equal(epoch(marks, None, rng(3)), np.arange(100))


def test_a_share_above_one_is_refused() -> None:
    with pytest.raises(ValueError, match="is no share: give one from 0 to 1, or -1 for rows as they come"):
        epoch(mixed(8, 2), 1.01, rng())
