"""The detectors: what their guarantee rests on, exactly, and how often and how late they alarm, by simulation."""

import json
import math
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.integrate import quad
from scipy.special import gammaln, ndtr

from retrue import detector

Floats = NDArray[np.float64]
YEAR = 8_760
LOWEST = st.floats(0.5, 0.99)


# p-values of checks for drift
def test_evidence_is_worth_one_on_average_where_nothing_has_drifted() -> None:
    mean = sum(quad(lambda p: detector.evidence(p), a, b)[0] for a, b in [(1e-12, 1e-6), (1e-6, 1e-2), (1e-2, 1)])
    lost = float((1e-12**detector.KAPPAS).mean())  # below 1e-12
    assert mean + lost == pytest.approx(1, abs=1e-6)


@given(st.floats(0, 1), st.floats(0, 1))
def test_the_smaller_p_is_the_stronger_the_evidence(one: float, other: float) -> None:
    smaller, larger = sorted([one, other])
    assert detector.evidence(smaller) >= detector.evidence(larger) >= detector.evidence(1) > 0
    assert math.isfinite(detector.evidence(smaller))


@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan])
def test_what_is_no_p_value_is_refused(p: float) -> None:
    with pytest.raises(ValueError, match="from 0 to 1"):
        detector.evidence(p)


def test_a_check_that_could_judge_nothing_leaves_the_total_as_it_is() -> None:
    assert detector.add(12.5, None) == 12.5
    assert detector.add(0, 2.0) == 2.0
    assert detector.add(12.5, 2.0) == 27.0


def test_no_storm_of_evidence_makes_a_total_that_cannot_be_written_down() -> None:
    total = 0.0
    for _ in range(5):
        total = detector.add(total, detector.evidence(0.0))
    assert json.loads(json.dumps(total)) == detector.LARGEST


def followed(p: Floats, start: float = 0.0) -> Floats:
    """The totals of many streams of p-values, side by side; (checks, streams)."""
    # One value of kappa at a time, since a table for all of them would not fit beside the streams.
    e = sum(kappa * np.maximum(p, detector.SMALLEST) ** (kappa - 1) for kappa in detector.KAPPAS) / len(detector.KAPPAS)
    totals = np.empty_like(p)
    total = np.full(p.shape[1], start)
    for check, found in enumerate(e):
        total = np.minimum((total + 1) * found, detector.LARGEST)
        totals[check] = total
    return totals


def delays(totals: Floats, run_length: float) -> Floats:
    """The check at which each stream first reaches the run length, infinity where it never does."""
    over = totals >= run_length
    return np.where(over.any(axis=0), over.argmax(axis=0) + 1, np.inf)


def test_the_simulation_does_what_the_detector_does() -> None:
    p = np.random.default_rng(0).random((50, 1))
    total = 0.0
    for value in p[:, 0]:
        total = detector.add(total, detector.evidence(float(value)))
    assert followed(p)[-1, 0] == pytest.approx(total)


def test_a_year_of_hourly_checks_without_drift_rarely_alarms() -> None:
    p = np.random.default_rng(1).random((YEAR, 300))
    alarmed = np.isfinite(delays(followed(p), detector.CHECKS))
    assert 0.08 < alarmed.mean() < 0.2  # 0.15 on 3,000 streams


@pytest.mark.parametrize("run_length", [50, 200])
def test_checks_between_two_false_alarms_are_at_least_the_run_length_on_average(run_length: int) -> None:
    found = delays(followed(np.random.default_rng(2).random((40 * run_length, 300))), run_length)
    assert np.isfinite(found).mean() > 0.9
    assert np.minimum(found, 40 * run_length).mean() > run_length


@pytest.mark.parametrize(("shift", "least", "most"), [(1, 20, 27), (2, 5, 7), (3, 2, 4)])
def test_a_shift_of_so_many_standard_errors_is_found_in_so_many_checks(shift: int, least: int, most: int) -> None:
    rng = np.random.default_rng(3)
    p = np.vstack([rng.random((500, 500)), ndtr(-(rng.standard_normal((120, 500)) + shift))])
    totals = followed(p)
    quiet = totals[:500].max(axis=0) < detector.CHECKS
    assert quiet.mean() > 0.97
    assert least <= np.median(delays(totals[500:, quiet], detector.CHECKS)) <= most


def test_an_alarm_ends_within_days_of_its_cause() -> None:
    totals = followed(np.random.default_rng(4).random((72, 500)), start=detector.LARGEST)
    assert ((totals < detector.CHECKS).argmax(axis=0) < 48).mean() > 0.9
    assert (totals[-1] < detector.CHECKS).all()


# labels, for accuracy
def ratios(lowest: float) -> Floats:
    """The likelihood ratios of a right and of a wrong label, a row for each alternative."""
    odds = detector.ODDS * (1 - lowest) / lowest
    wrong = odds / (1 + odds)
    return np.column_stack([(1 - wrong) / lowest, wrong / (1 - lowest)])


@given(LOWEST, st.floats(0, 1))
def test_a_label_is_worth_at_most_one_while_accuracy_is_at_least_the_lowest(lowest: float, better: float) -> None:
    truth = lowest + better * (1 - lowest)
    fresh = np.array([detector.count(None, 1, 0, lowest), detector.count(None, 0, 1, lowest)])
    assert fresh.T.tolist() == [pytest.approx(both) for both in ratios(lowest)]
    assert (truth * fresh[0] + (1 - truth) * fresh[1] <= 1 + 1e-12).all()
    assert (lowest * fresh[0] + (1 - lowest) * fresh[1]) == pytest.approx(1)


@pytest.mark.parametrize(("right", "wrong"), [(1, 0), (0, 1), (3, 2), (1, 4), (6, 1)])
@pytest.mark.parametrize("lowest", [0.5, 0.9, 0.99])
def test_a_batch_is_the_mean_over_all_orders_of_its_labels(right: int, wrong: int, lowest: float) -> None:
    start = [3.0, 0.5]
    ends = []
    for order in permutations([0] * right + [1] * wrong):
        totals = np.array(start)
        for label in order:
            totals = (totals + 1) * ratios(lowest)[:, label]
        ends.append(totals)
    assert detector.count(start, right, wrong, lowest) == pytest.approx(np.mean(ends, axis=0).tolist())


def added_up(right: int, wrong: int, lowest: float) -> list[float]:
    """The mean products of 1, 2, ... labels drawn from a batch, added up one by one."""
    factorial = gammaln(np.arange(right + wrong + 1) + 1)

    def ways(n: int, k: NDArray[np.int64]) -> Floats:
        return np.asarray(factorial[n] - factorial[k] - factorial[n - k])

    found = []
    for of_right, of_wrong in np.log(ratios(lowest)):
        parts = []
        for drawn in range(1, right + wrong + 1):
            errors = np.arange(max(0, drawn - right), min(wrong, drawn) + 1)
            chances = ways(wrong, errors) + ways(right, drawn - errors) - ways(right + wrong, np.array(drawn))
            parts.append(np.logaddexp.reduce(chances + errors * of_wrong + (drawn - errors) * of_right))
        found.append(float(np.exp(np.logaddexp.reduce(parts))))
    return found


@pytest.mark.parametrize(
    ("right", "wrong", "lowest"), [(45, 5, 0.9), (460, 50, 0.9), (2800, 200, 0.9), (400, 400, 0.5), (1490, 10, 0.99)]
)
def test_thousands_of_labels_at_once_are_added_up_exactly(right: int, wrong: int, lowest: float) -> None:
    assert detector.count(None, right, wrong, lowest) == pytest.approx(added_up(right, wrong, lowest), rel=1e-9)


@pytest.mark.parametrize("lowest", [0.5, 0.75, 0.9, 0.99])
def test_batches_of_any_size_can_be_written_down_and_taken_up_again(lowest: float) -> None:
    totals = None
    for right, wrong in [(0, 20_000), (0, 20_000), (3, 0)]:
        totals = json.loads(json.dumps(detector.count(totals, right, wrong, lowest)))
    assert 0.1 * detector.LARGEST < detector.level(totals) <= detector.LARGEST
    totals = json.loads(json.dumps(detector.count(totals, 50_000, 0, lowest)))
    assert 0 <= detector.level(totals) < 1_000


def test_a_check_without_labels_changes_nothing() -> None:
    assert detector.count([3.25, 0.1], 0, 0, 0.9) == [3.25, 0.1]
    assert detector.count(None, 0, 0, 0.9) == [0.0, 0.0]
    assert detector.level(None) == 0.0
    assert detector.level([3.0, 1.0]) == 2.0


@pytest.mark.parametrize(
    ("right", "wrong", "lowest", "totals", "message"),
    [
        (-1, 3, 0.9, None, "counts of 0 or more"),
        (3, -1, 0.9, None, "counts of 0 or more"),
        (3, 1, 0.0, None, "between 0 and 1"),
        (3, 1, 1.0, None, "between 0 and 1"),
        (3, 1, math.nan, None, "between 0 and 1"),
        (3, 1, 0.9, [1.0, 2.0, 3.0], "begin anew"),
    ],
)
def test_what_is_no_batch_is_refused(
    right: int, wrong: int, lowest: float, totals: list[float] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        detector.count(totals, right, wrong, lowest)


class Stream:
    """Many streams of labels side by side, counted a batch at a time by what the detector makes of each batch."""

    def __init__(self, seed: int, streams: int, lowest: float, most: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.totals = np.zeros((streams, len(detector.ODDS)))
        shape = (most + 1, most + 1, len(detector.ODDS))
        self.fresh, self.factor = np.zeros(shape), np.ones(shape)  # totals are an affine function of what they were
        for right in range(most + 1):
            for wrong in range(min(most // 2, most - right) + 1):
                fresh = self.fresh[right, wrong] = detector.count(None, right, wrong, lowest)
                self.factor[right, wrong] = np.subtract(detector.count([1.0, 1.0], right, wrong, lowest), fresh)

    def run(self, truth: float, labels: float, batches: int, run_length: float) -> Floats:
        """How many labels each stream had when it first alarmed, with `labels` a batch on average; else infinity."""
        seen, found = np.zeros(len(self.totals)), np.full(len(self.totals), np.inf)
        rights = self.rng.poisson(labels * truth, (batches, len(seen)))
        wrongs = self.rng.poisson(labels * (1 - truth), (batches, len(seen)))
        for right, wrong in zip(rights, wrongs, strict=True):
            self.totals = self.totals * self.factor[right, wrong] + self.fresh[right, wrong]
            seen += right + wrong
            new = (self.totals.mean(axis=1) >= run_length) & np.isinf(found)
            found[new] = seen[new]
        return found


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 5)), max_size=5), LOWEST)
def test_what_is_halfway_between_two_totals_stays_there(batches: list[tuple[int, int]], lowest: float) -> None:
    low, middle, high = [0.0, 0.0], [0.5, 2.0], [1.0, 4.0]
    for right, wrong in batches:
        low, middle, high = (detector.count(totals, right, wrong, lowest) for totals in (low, middle, high))
    assert middle == pytest.approx(((np.array(low) + high) / 2).tolist())


@pytest.mark.parametrize(
    ("daily", "checks", "count", "false_alarms", "delay"),
    [  # and what was seen on 1,500 streams, of the hourly 50 on 6,000
        pytest.param(10, 1, 250, 0.03, 330, id="10 labels a day, judged daily"),  # 0.4 %, 301 labels
        pytest.param(10, 24, 250, 0.03, 300, id="10 labels a day, judged hourly"),  # 0.7 %, 271
        pytest.param(50, 1, 250, 0.03, 360, id="50 labels a day, judged daily"),  # 1.0 %, 331
        pytest.param(50, 24, 700, 0.05, 300, id="50 labels a day, judged hourly"),  # FILL %, 274
    ],
)
def test_a_year_of_labels_at_the_promised_accuracy_rarely_alarms_and_a_fall_is_found_soon(
    daily: int, checks: int, count: int, false_alarms: float, delay: int
) -> None:
    streams = Stream(seed=5, streams=count, lowest=0.9, most=100 if daily / checks == 50 else 34)
    year = streams.run(0.92, daily / checks, 365 * checks, detector.LABELS)
    assert np.isfinite(year).mean() <= false_alarms
    streams.totals = streams.totals[np.isinf(year)][:200]
    fall = streams.run(0.85, daily / checks, 1_200 // daily * checks, detector.LABELS)
    assert 200 < np.median(fall) <= delay


@pytest.mark.parametrize(("lowest", "truth"), [(0.5, 0.35), (0.7, 0.6), (0.9, 0.82), (0.99, 0.97)])
def test_any_lowest_accuracy_keeps_the_run_length_and_finds_a_fall(lowest: float, truth: float) -> None:
    run_length = 300
    streams = Stream(seed=6, streams=400, lowest=lowest, most=22)
    alarms = streams.run(lowest, 3.0, 3_000, run_length)
    assert np.isfinite(alarms).mean() > 0.9
    assert np.minimum(alarms, 9_000).mean() > run_length
    streams.totals[:] = 0
    assert np.median(streams.run(truth, 3.0, 150, run_length)) < 200


def test_at_exactly_the_lowest_accuracy_an_alarm_within_a_year_is_likely() -> None:
    streams = Stream(seed=7, streams=200, lowest=0.9, most=100)
    alarms = streams.run(0.9, 50, 365, detector.LABELS)
    assert 0.4 < np.isfinite(alarms).mean() < 0.7  # 0.55 on 600 streams: what is not tolerated is a hair away
