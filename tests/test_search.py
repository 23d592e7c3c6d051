"""The search: what is tried, how long it may take, and which trial wins."""

import dataclasses
import itertools
import math
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrue import search
from retrue.errors import BadInput, TrainingFailed
from retrue.search import Plan, Search, Trial


@dataclass(frozen=True)
class Training:
    """A training's settings as the search meets them."""

    encoder_name: str = "tiny"
    learning_rate: float = 1e-4
    epochs: int = 3
    cut: str = "head"
    compile: bool = False
    metric: str = "accuracy"
    minutes: float = 0.0
    until: float = 1.0


KNOWN = search.kinds(Training)
RANGES = {"learning_rate": {"loguniform": [1e-5, 1e-2]}, "epochs": {"randint": [1, 3]}, "cut": ["head", "ends"]}


def planned(trials: int, seconds: float = 0.0, **more: Any) -> Plan:
    rest: dict[str, Any] = {"least": 0.0, "longest": math.inf, **more}
    return search.plan([{"epochs": str(n)} for n in range(trials)], seconds, **rest)


def tried(found: Search, scores: dict[str, float]) -> Search:
    """The search after its rung; a trial without a score failed."""
    for trial in found.running:
        score = scores.get(trial.name)
        state = {"state": "failed", "error": "out of memory"} if score is None else {"metric": score}
        found = found.replaced(dataclasses.replace(trial, rungs=found.rung + 1, **state))  # type: ignore[arg-type]
    return search.halve(found)


# what is tried
def test_only_what_trials_may_differ_in_can_be_searched() -> None:
    assert {"learning_rate": float, "epochs": int, "cut": str, "compile": bool} == KNOWN


def test_a_space_takes_lists_and_ranges_and_gives_texts() -> None:
    # PyYAML reads 1e-4 as a text, since YAML 1.1 wants a point in a number.
    found = search.space({"learning_rate": ["1e-4", 3e-4, 0.0003], "epochs": [1, 2], "compile": [True]}, KNOWN)
    assert found == {"learning_rate": ["0.0001", "0.0003"], "epochs": ["1", "2"], "compile": ["True"]}
    assert search.space(RANGES, KNOWN) == {
        "learning_rate": ("loguniform", 1e-5, 1e-2),
        "epochs": ("randint", 1, 3),
        "cut": ["head", "ends"],
    }


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"rate": [1]}, "rate cannot be searched: there are learning_rate, epochs, cut, compile"),
        ({"until": [0.5]}, "until cannot be searched"),
        ({"epochs": [1.5]}, "epochs holds a value that is not a whole number"),
        ({"epochs": []}, "epochs is neither a list"),
        ({"epochs": 3}, "epochs is neither a list"),
        ({"compile": ["perhaps"]}, "compile holds a value that is not true or false"),
        ({"learning_rate": {"normal": [0, 1]}}, "learning_rate is not a range: write one of uniform, loguniform"),
        ({"learning_rate": {"uniform": [0, 1], "loguniform": [1, 2]}}, "learning_rate is not a range"),
        ({"learning_rate": {}}, "learning_rate is not a range"),
        ({"learning_rate": {"uniform": 1}}, "learning_rate is not a range"),
        ({"learning_rate": {"uniform": [1, 1]}}, "learning_rate needs ends of uniform with low < high"),
        ({"learning_rate": {"uniform": [0, "inf"]}}, "learning_rate needs ends of uniform"),
        ({"learning_rate": {"loguniform": [0, 1]}}, "learning_rate needs ends of loguniform.*both above 0"),
        ({"learning_rate": {"uniform": ["low", 1]}}, "learning_rate has ends of uniform that are not numbers"),
        ({"epochs": {"uniform": [1, 3]}}, "epochs is a whole number, of which uniform draws none"),
        ({"epochs": {"randint": [1.5, 3]}}, "epochs has ends of randint that are not numbers of its type"),
        ({"cut": {"randint": [1, 3]}}, "cut is a text"),
    ],
)
def test_a_wrong_entry_is_named_with_its_reason(entry: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadInput, match=reason):
        search.space(entry, KNOWN)


def test_every_wrong_entry_is_named_in_one_error() -> None:
    wanted = r"rate, 7 cannot be searched: there are .*; epochs holds a value.*; cut is neither"
    with pytest.raises(BadInput, match=wanted):
        search.space({"rate": [1], "epochs": ["few"], "cut": "head", "learning_rate": [1e-4], 7: [1]}, KNOWN)


@pytest.mark.parametrize("values", [None, [], {}, "learning_rate"])
def test_a_space_without_settings_is_refused(values: Any) -> None:
    with pytest.raises(BadInput, match="the space is not a mapping"):
        search.space(values, KNOWN)


def test_a_grid_tries_every_point_once() -> None:
    space = search.space({"learning_rate": ["1e-4", 1e-3], "epochs": [1, 2, 3]}, KNOWN)
    drawn = search.draw("grid", space, 6, seed=0)
    wanted = [{"learning_rate": r, "epochs": e} for r, e in itertools.product(["0.0001", "0.001"], ["1", "2", "3"])]
    assert sorted(map(str, drawn)) == sorted(str({"epochs": p["epochs"], **p}) for p in wanted)


def test_a_grid_of_more_points_than_trials_is_refused() -> None:
    with pytest.raises(BadInput, match="the grid has 6 points and 5 trials are allowed"):
        search.draw("grid", search.space({"learning_rate": [1e-4, 1e-3], "epochs": [1, 2, 3]}, KNOWN), 5, seed=0)


def test_a_grid_of_a_range_is_refused() -> None:
    with pytest.raises(BadInput, match="a grid has no ranges: list the values of epochs, learning_rate"):
        search.draw("grid", search.space(RANGES, KNOWN), 9, seed=0)


@pytest.mark.parametrize(("kind", "trials"), [("bayes", 3), (None, 3), ("random", 0)])
def test_a_search_of_no_kind_or_no_trial_is_refused(kind: Any, trials: int) -> None:
    with pytest.raises(BadInput):
        search.draw(kind, search.space(RANGES, KNOWN), trials, seed=0)


@settings(max_examples=20, deadline=None)  # each example draws from distributions, which takes its time
@given(trials=st.integers(1, 12), seed=st.integers(0, 2**32 - 1))
def test_random_trials_are_as_many_as_asked_all_different_inside_the_ranges_and_seeded(trials: int, seed: int) -> None:
    space = search.space(RANGES, KNOWN)
    drawn = search.draw("random", space, trials, seed)
    assert drawn == search.draw("random", space, trials, seed)
    assert len({str(sorted(point.items())) for point in drawn}) == len(drawn) == trials
    for point in drawn:
        assert 0.999e-5 <= float(point["learning_rate"]) <= 1.001e-2
        assert int(point["epochs"]) in (1, 2, 3)
        assert point["cut"] in ("head", "ends")


def test_other_seeds_give_other_trials_and_draws_spread_over_the_powers_of_ten() -> None:
    space = search.space({"learning_rate": {"loguniform": [1e-5, 1e-2]}}, KNOWN)
    first, second = (search.draw("random", space, 60, seed) for seed in (0, 1))
    assert first != second
    powers = {math.floor(math.log10(float(point["learning_rate"]))) for point in first}
    assert powers == {-5, -4, -3}


@pytest.mark.parametrize("values", [{"epochs": [1, 2], "cut": ["head"]}, {"epochs": {"randint": [1, 2]}}])
def test_a_space_smaller_than_the_trials_is_tried_whole(values: dict[str, Any]) -> None:
    drawn = search.draw("random", search.space(values, KNOWN), 10, seed=0)
    assert sorted(point["epochs"] for point in drawn) == ["1", "2"]


# how long it may take
@pytest.mark.parametrize(
    ("trials", "places", "shares"),
    [
        (1, [1], [1.0]),
        (2, [2], [1.0]),
        (3, [3, 2], [1 / 3, 1.0]),
        (8, [8, 2], [1 / 3, 1.0]),
        (9, [9, 3, 2], [1 / 9, 1 / 3, 1.0]),
        (16, [16, 5, 2], [1 / 9, 1 / 3, 1.0]),
        (27, [27, 9, 3], [1 / 9, 1 / 3, 1.0]),  # a share of 1/27 would judge too early
    ],
)
def test_each_rung_keeps_a_third_for_three_times_as_long_and_the_last_one_two_at_least(
    trials: int, places: list[int], shares: list[float]
) -> None:
    plan = planned(trials)
    assert plan.places == places
    assert plan.shares == pytest.approx(shares)


def test_nine_trials_cost_three_trainings_instead_of_nine() -> None:
    assert planned(9).work == pytest.approx(9 / 9 + 3 * 2 / 9 + 2 * 2 / 3)
    assert planned(2).work == 2


@settings(deadline=None)  # a neighbour of this machine may take its core at any time
@given(
    trials=st.integers(1, 40),
    hours=st.floats(0.01, 200),
    least=st.floats(0, 600),
    longest=st.floats(60, 86_400),
    eta=st.integers(2, 5),
)
def test_the_worst_case_never_exceeds_the_time(
    trials: int, hours: float, least: float, longest: float, eta: int
) -> None:
    try:
        plan = planned(trials, hours * 3600, least=least, longest=longest, eta=eta)
    except BadInput:
        assert hours * 3600 < least * 2 * trials
        return
    assert plan.hours <= hours
    assert all(0 <= seconds <= longest for seconds in plan.seconds)
    assert all(seconds >= math.floor(min(least, longest)) for seconds in plan.seconds)
    assert plan.places[0] == trials
    assert plan.shares[-1] == 1.0
    assert plan.shares == sorted(plan.shares)
    assert all(0 < after <= max(2, before / eta) for before, after in itertools.pairwise(plan.places))


def test_time_that_is_too_short_to_start_every_job_is_refused() -> None:
    with pytest.raises(BadInput, match=r"9 trials need 1\.17 machine hours to start alone, and 1\.00 are allowed"):
        planned(9, 3600, least=300)


def test_a_plan_tells_its_size_and_its_price() -> None:
    plan = planned(9, 7_200, price=1.5)
    assert plan.hours == pytest.approx(2, abs=0.01)
    assert plan.cost == pytest.approx(3, abs=0.01)
    told = "9 trials (9 to 11%, 3 to 33%, 2 to 100%), the work of 3.0 full trainings"
    assert plan.told() == f"{told}, at most 2.00 machine hours for 3.00 at 1.5 an hour"
    assert planned(9).told() == told


# which trial wins
@settings(deadline=None)
@given(st.permutations(range(9)))
def test_the_known_best_wins_where_curves_do_not_cross(order: list[int]) -> None:
    scores = {f"{number:02d}": rank / 10 for number, rank in enumerate(order)}
    found = Search.begin(planned(9))
    ran = []
    while found.running:
        ran.append(len(found.running))
        found = tried(found, scores)
    assert ran == [9, 3, 2]
    assert search.winner(found).name == f"{order.index(8):02d}"
    states = [trial.state for trial in found.trials]
    assert (states.count("finished"), states.count("stopped early")) == (2, 7)
    assert sorted(trial.rungs for trial in found.trials) == [1] * 6 + [2] + [3] * 2


def test_of_equals_the_first_goes_on() -> None:
    found = tried(Search.begin(planned(3)), {"00": 0.8, "01": 0.8, "02": 0.8})
    assert [trial.name for trial in found.running] == ["00", "01"]


def test_the_place_of_a_trial_that_failed_goes_to_the_next_best() -> None:
    found = tried(Search.begin(planned(9)), {"03": 0.6, "04": 0.5, "05": 0.7, "06": 0.4})
    assert [trial.name for trial in found.running] == ["03", "04", "05"]
    found = tried(found, {"04": 0.9})
    assert [trial.name for trial in found.running] == ["04"]
    assert [trial.state for trial in found.trials].count("failed") == 7


def test_all_that_finish_the_last_rung_are_compared() -> None:
    found = tried(Search.begin(planned(2)), {"00": 0.5, "01": 0.6})
    assert not found.running
    assert [trial.state for trial in found.trials] == ["finished", "finished"]
    assert search.winner(found).name == "01"


def test_without_a_finished_trial_every_reason_is_told() -> None:
    found = tried(Search.begin(planned(2)), {})
    with pytest.raises(TrainingFailed, match="trial 00: out of memory; trial 01: out of memory"):
        search.winner(found)


def test_a_trial_of_an_earlier_rung_does_not_win_with_the_score_it_had() -> None:
    found = tried(Search.begin(planned(3)), {"00": 0.9, "01": 0.8, "02": 0.1})
    found = tried(found, {})
    with pytest.raises(TrainingFailed, match=r"trial 00: out of memory; trial 01: out of memory$"):
        search.winner(found)


def test_a_search_is_the_same_after_it_was_written_and_read() -> None:
    found = tried(Search.begin(planned(3, 600, price=2)), {"00": 0.5, "01": 0.6})
    curve = dataclasses.replace(found.trials[0], history=[{"step": 1, "accuracy": 0.5}], losses=[[1, 0.7]])
    found = found.replaced(curve)
    assert Search.from_json(found.to_json()) == found
    assert isinstance(found.trials[2], Trial)
