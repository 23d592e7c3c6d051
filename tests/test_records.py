"""Records, their ids and their times."""

import json
import os
import random
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrue.records import LAST_MS, Job, Label, Prediction, from_iso, id_ms, iso, kept, new_id, why_missing

MS = st.integers(0, 253_402_300_799_999)  # until the end of the year 9999


@given(MS, st.binary(min_size=10, max_size=16))
def test_an_id_is_a_uuid_of_version_7_and_tells_its_time(ms: int, entropy: bytes) -> None:
    made = uuid.UUID(new_id(ms, entropy))
    assert made.version == 7
    assert made.variant == uuid.RFC_4122
    assert id_ms(str(made)) == ms


def test_ids_of_one_millisecond_differ() -> None:
    assert len({new_id(1_700_000_000_000, os.urandom(10)) for _ in range(1_000)}) == 1_000


def test_later_ids_sort_behind_earlier_ones() -> None:
    ids = [new_id(ms, os.urandom(10)) for ms in range(1_700_000_000_000, 1_700_000_000_100)]
    assert ids == sorted(ids)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no id at all",
        str(uuid.UUID(int=0)),
        "6f9619ff-8b86-4d11-b42d-00cf4fc964ff",
        "019B7911-93C0-7ABC-8DEF-0123456789AB",
        "{019b7911-93c0-7abc-8def-0123456789ab}",
        "urn:uuid:019b7911-93c0-7abc-8def-0123456789ab",
        "ffffffff-ffff-7fff-bfff-ffffffffffff",
        "e677d21f-dc00-7000-8000-000000000000",
        "../../019b7911-93c0-7abc-8def-0123456789ab",
    ],
)
def test_what_is_no_id_of_ours_has_no_time(text: str) -> None:
    assert id_ms(text) is None


@given(st.integers(0, 4_102_444_800_000))
def test_a_time_survives_its_text(ms: int) -> None:
    assert from_iso(iso(ms)) == ms


def test_a_time_is_utc_with_milliseconds() -> None:
    assert iso(1_767_259_800_125) == "2026-01-01T09:30:00.125Z"


@given(st.binary(min_size=10, max_size=10), st.floats(0, 1), st.floats(0, 1))
def test_what_is_kept_at_a_rate_is_kept_at_every_higher_one_at_any_time(
    entropy: bytes, one: float, other: float
) -> None:
    low, high = sorted((one, other))
    assert kept(new_id(0, entropy), low) <= kept(new_id(LAST_MS, entropy), high)


def test_the_share_that_is_kept_is_the_rate() -> None:
    draw = random.Random(0)
    ids = [new_id(n, draw.randbytes(10)) for n in range(4_000)]
    for rate, low, high in ((0, 0, 0), (0.1, 0.08, 0.12), (0.5, 0.47, 0.53), (1, 1, 1)):
        assert low <= sum(kept(id, rate) for id in ids) / len(ids) <= high


def test_what_was_not_kept_is_told_apart_from_what_never_was() -> None:
    first, last = (new_id(0, bytes([filled]) * 10) for filled in (0, 255))
    assert why_missing(last, 0.125).startswith("no record of this prediction was kept: 12.5 % are")
    for id, rate in ((first, 0.125), (last, 1), ("nonsense", 0.125)):
        assert why_missing(id, rate) == "there is no prediction with this id"


def test_a_label_carries_the_facts_of_its_prediction() -> None:
    scores = {"good": 0.2, "bad": 0.8}
    one = Prediction("i", iso(0), "m", "bad", 0.8, scores, 9, False, [0.5], "csv:0f1e2d", "a text")
    assert one.truth("good", iso(5), "http") == Label(
        "i", iso(5), "good", "m", "bad", scores, "http", "a text", tokens=9, origin="csv"
    )


def test_labels_of_older_deployments_are_read() -> None:
    line = json.loads(Label("i", iso(0), "good", "m", "bad", {}, "http").to_json())
    older = Label.of({name: value for name, value in line.items() if name not in ("tokens", "origin")})
    assert (older.tokens, older.origin) == (0, "")


def test_a_record_is_one_line_without_what_is_absent() -> None:
    label = Label("i", iso(0), "good", "m", "bad", {"good": 0.2, "bad": 0.8}, "http", text="two\nlines\u2028and é")
    line = label.to_json()
    assert "\n" not in line
    assert Label.from_json(line) == label
    assert "text" not in json.loads(Label("i", iso(0), "good", "m", "bad", {}, "http").to_json())


def test_a_reader_leaves_out_keys_that_a_newer_writer_added() -> None:
    job = Job("j", "predict", "incoming/a.csv", "running", iso(0))
    newer = {**json.loads(job.to_json()), "colour": "blue"}
    assert Job.from_json(json.dumps(newer)) == job


def test_a_prediction_of_an_older_writer_can_be_read() -> None:
    kept = Prediction(
        "i", iso(0), "m", "good", 0.8, {"good": 0.8, "bad": 0.2}, 5, False, [0.5], "http", None, 0.25, 0.1
    )
    assert Prediction.from_json(kept.to_json()) == kept
    older = {k: v for k, v in json.loads(kept.to_json()).items() if k not in ("pieces", "symbols")}
    assert (Prediction.of(older).pieces, Prediction.of(older).symbols) == (0.0, 0.0)


def test_a_record_that_lacks_a_fact_is_refused() -> None:
    with pytest.raises(TypeError):
        Prediction.from_json('{"id": "x"}')
