"""The queue of small objects made into batched ones, on an S3 in this process, with every way to break off."""

import gzip
import random
import tracemalloc
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count, islice
from typing import Any

import boto3
import pytest
from moto import mock_aws

from retrue import intake
from retrue.intake import Intake
from retrue.lake import CAPTURE, FEEDBACK, LABELLED, PREDICTIONS, Lake, hour_prefix, span, stamp
from retrue.records import Label, Prediction, iso, new_id

HOUR = 3_600_000
NOW = 1_767_259_800_000  # 2026-01-01T09:30Z
EARLY = NOW - 30 * 60_000  # the first millisecond of its hour
numbers = count(1)


class CrashingError(Exception):
    """The function was ended here."""


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    with mock_aws():
        yield boto3.client("s3")


@pytest.fixture
def lake(s3: Any) -> Iterator[Lake]:
    s3.create_bucket(Bucket="lake", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
    yield Lake("lake", s3)
    Lake("lake", s3).delete(list(Lake("lake", s3).keys("")))
    s3.delete_bucket(Bucket="lake")


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "RECORDS", 4)


def prediction(ms: int, text: str | None = None) -> Prediction:
    id = new_id(ms, random.Random(next(numbers)).randbytes(10))
    return Prediction(
        id, iso(ms), "m1", "positive", 0.75, {"negative": 0.25, "positive": 0.75}, 7, False, [0.5], "http", text
    )


def captured(lake: Lake, times: Sequence[int], text: str | None = None) -> list[Prediction]:
    """One request at each time."""
    made = [prediction(ms, text) for ms in times]
    for one in made:
        lake.write_predictions([one])
    return made


def taken(lake: Lake, commit: bool = True, **bounds: int) -> list[Prediction]:
    with Intake(lake, Prediction, **bounds) as found:
        records = list(found)
        if commit:
            found.commit()
    return records


def everything(lake: Lake, prefix: str = "") -> dict[str, bytes]:
    return {key: lake.get(key) for key in lake.keys(prefix)}


def batched(lake: Lake) -> list[Prediction]:
    """What lies in batched objects, object by object."""
    return [Prediction.from_json(line) for body in everything(lake, PREDICTIONS).values() for line in lines(body)]


def lines(body: bytes) -> list[bytes]:
    return gzip.decompress(body).splitlines()


def ids(records: Sequence[Prediction]) -> list[str]:
    return [one.id for one in records]


def by_id(records: Sequence[Prediction]) -> list[Prediction]:
    return sorted(records, key=lambda one: one.id)


def test_records_come_oldest_first_whatever_the_order_in_which_they_were_written(lake: Lake) -> None:
    times = [NOW, NOW - 26 * HOUR, NOW + 1, NOW - HOUR, NOW - 2]
    made = captured(lake, times)
    assert taken(lake, commit=False) == by_id(made)


def test_without_a_commit_the_lake_stays_as_it_is(lake: Lake) -> None:
    captured(lake, [NOW, NOW + 1])
    before = everything(lake)
    assert len(taken(lake, commit=False)) == 2
    assert everything(lake) == before


def test_a_commit_empties_the_queue_into_objects_of_one_hour_sorted_by_id(lake: Lake) -> None:
    made = captured(lake, [NOW - HOUR, *(NOW + n // 2 for n in range(6))])
    taken(lake)
    assert list(lake.keys(CAPTURE)) == []
    objects = everything(lake, PREDICTIONS)
    sizes = {key: len(lines(body)) for key, body in objects.items()}
    assert sorted(sizes.values()) == [1, 2, 4]
    for key, body in objects.items():
        found = [Prediction.from_json(line) for line in lines(body)]
        assert found == by_id(found)
        first, last = span(key)
        assert (iso(first), iso(last)) == (found[0].time, found[-1].time)
        assert key.startswith(f"{hour_prefix(PREDICTIONS, first)}{stamp(first)}-{stamp(last)}-")
    assert by_id(batched(lake)) == by_id(made)


def test_labels_are_batched_by_the_time_they_arrived_and_predictions_left_alone(lake: Lake) -> None:
    (old,) = captured(lake, [NOW - 90 * 24 * HOUR])
    told = [old.truth(label, iso(NOW + n), "http") for n, label in enumerate(["negative", "positive"])]
    for one in reversed(told):
        lake.write_labels([one])
    with Intake(lake, Label) as found:
        assert list(found) == told
        found.commit()
    (key,) = lake.keys(LABELLED)
    assert key.startswith(hour_prefix(LABELLED, NOW) + stamp(NOW))
    assert list(lake.keys(FEEDBACK)) == []
    assert len(list(lake.keys(CAPTURE))) == 1
    assert list(lake.newest_labels(NOW + 5, hours=1)) == told[::-1]


def test_one_prediction_may_be_labelled_twice(lake: Lake) -> None:
    one = prediction(NOW)
    for label in ("negative", "positive\tor so", "negative"):
        lake.write_labels([one.truth(label, iso(NOW + next(numbers)), "http")])
    with Intake(lake, Label) as found:
        assert [label.label for label in found] == ["negative", "positive\tor so", "negative"]
        found.commit()
    assert [label.label for label in lake.newest_labels(NOW, 1)] == ["negative", "positive\tor so", "negative"]


def test_a_label_that_came_twice_in_one_file_is_one(lake: Lake) -> None:
    one, other = prediction(NOW), prediction(NOW)
    told = [of.truth("negative", iso(NOW), "csv:0f1e2d") for of in (one, other, one)]
    lake.write_labels(told)
    with Intake(lake, Label) as found:
        assert list(found) == told[:2]
        found.commit()
    assert {label.id for label in lake.newest_labels(NOW, 1)} == {one.id, other.id}
    assert list(lake.keys(FEEDBACK)) == []


@pytest.mark.parametrize("operation", ["PutObject", "DeleteObjects"])
@pytest.mark.parametrize("passes", [0, 1, 2])
def test_a_commit_that_breaks_off_anywhere_is_finished_by_the_next(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, operation: str, passes: int
) -> None:
    monkeypatch.setattr("retrue.lake.MOST_DELETED", 3)
    made = captured(lake, [EARLY + n for n in range(9)])
    with Intake(lake, Prediction) as found:
        list(found)
        with crashing(lake, operation, passes), pytest.raises(CrashingError):
            found.commit()
    for one in made:
        assert lake.find_prediction(one.id) == one
    # In the meantime some come, in between, before and behind.
    made += captured(lake, [EARLY - 1, EARLY, EARLY + 4, EARLY + 20])
    taken(lake)
    assert Counter(ids(batched(lake))) == Counter(ids(made))
    assert list(lake.keys(CAPTURE)) == []
    assert taken(lake) == []


@pytest.mark.parametrize("passes", [1, 2])
def test_a_commit_that_is_finished_later_writes_the_same_objects(lake: Lake, passes: int) -> None:
    captured(lake, [EARLY + n for n in range(10)])
    queue = everything(lake)
    taken(lake)
    undisturbed = everything(lake)
    lake.delete(list(undisturbed))
    for key, body in queue.items():
        lake.put(key, body)
    with Intake(lake, Prediction) as found:
        list(found)
        with crashing(lake, "PutObject", passes), pytest.raises(CrashingError):
            found.commit()
    again = taken(lake)
    assert len(again) == 10 - 4 * passes  # what lies in a batched object is no longer new
    assert everything(lake) == undisturbed


def test_a_record_that_comes_late_for_an_hour_is_batched_by_itself(lake: Lake) -> None:
    made = captured(lake, [EARLY, EARLY + 5, EARLY + 10])
    taken(lake)
    before = everything(lake)
    late = captured(lake, [EARLY + 7])
    assert taken(lake) == late
    assert len(list(lake.keys(PREDICTIONS))) == 2
    assert everything(lake).items() > before.items()
    assert [lake.find_prediction(one.id) for one in made + late] == made + late


def test_a_record_that_is_written_again_after_it_was_batched_is_not_new(lake: Lake) -> None:
    made = captured(lake, [NOW, NOW + 1])
    taken(lake)
    before = everything(lake)
    for one in made:  # as a CSV job does that is done again
        lake.write_predictions([one])
    assert taken(lake) == []
    assert everything(lake) == before


@pytest.mark.parametrize("first", [0, 1])
def test_two_side_by_side_lose_nothing(lake: Lake, first: int) -> None:
    made = captured(lake, [EARLY + n for n in range(6)])
    with Intake(lake, Prediction) as one, Intake(lake, Prediction) as other:
        list(one)
        made += captured(lake, [EARLY + 3, EARLY + 9])
        list(other)
        for both in [(one, other), (other, one)][first]:
            both.commit()
    assert set(ids(batched(lake))) == set(ids(made))
    assert [lake.find_prediction(one.id) for one in made] == made
    assert list(lake.keys(CAPTURE)) == []


def test_two_at_the_very_same_time_lose_nothing(lake: Lake) -> None:
    made = captured(lake, [EARLY + n for n in range(40)])
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: taken(lake), range(2)))
    assert {*ids(both[0]), *ids(both[1])} == set(ids(made))
    assert set(ids(batched(lake))) == set(ids(made))
    assert list(lake.keys(CAPTURE)) == []


def test_an_object_that_another_took_meanwhile_is_left_out(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    made = captured(lake, [EARLY + n for n in range(20)])
    with Intake(lake, Prediction) as found:
        records = iter(found)
        begun = next(records)
        taken(lake)
        rest = list(records)
        found.commit()
    assert {begun.id, *ids(rest)} <= set(ids(made))
    assert set(ids(batched(lake))) == set(ids(made))


@pytest.mark.parametrize("seed", range(3))
def test_whatever_happens_every_record_is_kept_once(lake: Lake, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr("retrue.lake.MOST_DELETED", 3)
    draw = random.Random(seed)
    made: list[Prediction] = []
    for _ in range(8):
        made += captured(lake, [EARLY - 20 + draw.randrange(60) for _ in range(draw.randrange(6))])
        with Intake(lake, Prediction, most=draw.choice([2, 5, 100])) as found:
            list(islice(found, draw.choice([1, 3, 100])))
            match draw.randrange(3):
                case 0:
                    found.commit()
                case 1 if found.taken:
                    with crashing(lake, draw.choice(["PutObject", "DeleteObjects"]), 0), pytest.raises(CrashingError):
                        found.commit()
    taken(lake)
    assert Counter(ids(batched(lake))) == Counter(ids(made))
    assert list(lake.keys(CAPTURE)) == []


def test_what_is_over_a_bound_waits_for_the_next(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    made = by_id(captured(lake, [NOW + n for n in range(5)]))
    with Intake(lake, Prediction, most=3) as found:
        assert list(found) == made[:3]
        assert found.left
        found.commit()
    assert len(list(lake.keys(CAPTURE))) == 2
    with Intake(lake, Prediction, most=2) as found:
        assert list(found) == made[3:]
        assert not found.left
    monkeypatch.setattr(intake, "DISK", -1)
    with Intake(lake, Prediction) as found:
        assert list(found) == []
        assert found.left


def test_a_commit_takes_what_the_iteration_reached_and_no_more(lake: Lake) -> None:
    pair = [prediction(NOW), prediction(NOW)]
    lake.write_predictions(pair)
    rest = captured(lake, [NOW + 1])
    with Intake(lake, Prediction) as found:
        assert next(iter(found)) == pair[0]
        found.commit()
        assert list(found) == []
    assert by_id(batched(lake)) == by_id(pair)  # an object is taken whole
    assert taken(lake) == rest


def test_long_texts_make_smaller_objects(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "BYTES", 1_200)
    captured(lake, [EARLY + n for n in range(4)], "long " * 150)
    taken(lake)
    assert [len(lines(body)) for body in everything(lake, PREDICTIONS).values()] == [2, 2]


def test_memory_does_not_grow_with_the_queue(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "RECORDS", 20)
    peaks = []
    for requests in (20, 60):
        for n in range(requests):
            lake.write_predictions([prediction(EARLY + n, "x" * 20_000) for _ in range(4)])
        tracemalloc.start()
        with Intake(lake, Prediction) as found:
            assert sum(1 for _ in found) == 4 * requests
            found.commit()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        lake.delete(list(lake.keys(PREDICTIONS)))
    # The 40 requests more hold 3 MB of text.
    assert peaks[1] < peaks[0] + 1_000_000


class crashing:  # noqa: N801 - reads as what it does
    """Let some calls of one operation pass, and end at the next."""

    def __init__(self, lake: Lake, operation: str, passes: int) -> None:
        self.events, self.name = lake.s3.meta.events, f"before-call.s3.{operation}"
        self.calls, self.passes = count(), passes

    def __enter__(self) -> None:
        self.events.register(self.name, self.call)

    def __exit__(self, *_: object) -> None:
        self.events.unregister(self.name, self.call)

    def call(self, **_: Any) -> None:
        if next(self.calls) >= self.passes:
            raise CrashingError
