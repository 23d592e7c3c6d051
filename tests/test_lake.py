"""The lake, on an S3 that lives in this process."""

import gzip
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, get_type_hints

import boto3
import pytest
from botocore.exceptions import ClientError
from botocore.stub import Stubber
from moto import mock_aws

from retrue.errors import NotFound
from retrue.intake import Intake
from retrue.lake import CAPTURE, FEEDBACK, LABELLED, LEDGER, Lake, hour_prefix, split_uri, stamp
from retrue.records import Job, Label, LedgerEntry, Prediction, iso, new_id

HOUR = 3_600_000
NOW = 1_767_259_800_000  # 2026-01-01T09:30Z


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    with mock_aws():
        yield boto3.client("s3")


@pytest.fixture
def lake(s3: Any) -> Iterator[Lake]:
    s3.create_bucket(Bucket="lake", CreateBucketConfiguration={"LocationConstraint": s3.meta.region_name})
    yield Lake("lake", s3)
    for key in list(Lake("lake", s3).keys("")):
        s3.delete_object(Bucket="lake", Key=key)
    s3.delete_bucket(Bucket="lake")


def prediction(ms: int, text: str | None = None) -> Prediction:
    scores = {"negative": 0.25, "positive": 0.75}
    id = new_id(ms, os.urandom(10))
    return Prediction(id, iso(ms), "m1", "positive", 0.75, scores, 7, False, [0.5, -1.25], "http", text)


def label(ms: int, of: Prediction) -> Label:
    return Label(of.id, iso(ms), "negative", of.model, of.label, of.scores, "http")


def batch(lake: Lake) -> None:
    """What the monitor does with what came."""
    for kind in (Prediction, Label):
        with Intake(lake, kind) as found:
            list(found)
            found.commit()


@pytest.fixture
def asked(lake: Lake) -> Iterator[Counter[str]]:
    """How often each operation of S3 was called."""
    calls: Counter[str] = Counter()
    events = lake.s3.meta.events
    events.register("before-call.s3", lambda model, **_: calls.update([model.name]), unique_id="asked")
    yield calls
    events.unregister("before-call.s3", unique_id="asked")


def test_a_prediction_lies_in_the_hour_that_its_id_tells(lake: Lake) -> None:
    found = prediction(NOW)
    key = lake.write_predictions([found])
    assert key == f"capture/date=2026-01-01/hour=09/{stamp(NOW)}-{found.id[-12:]}.jsonl.gz"
    assert Prediction.from_json(gzip.decompress(lake.get(key))) == found


def test_a_prediction_is_found_among_others_of_its_millisecond(lake: Lake) -> None:
    first = prediction(NOW, "é")
    second, third = prediction(NOW, f'line\nbreak {{"id":"{first.id}"}}'), prediction(NOW)
    lake.write_predictions([first, second])
    lake.write_predictions([third])
    assert [lake.find_prediction(one.id) for one in (first, second, third)] == [first, second, third]
    batch(lake)
    assert [lake.find_prediction(one.id) for one in (first, second, third)] == [first, second, third]


def test_a_batched_prediction_takes_one_listing_and_one_read(lake: Lake, asked: Counter[str]) -> None:
    made = [prediction(NOW - n * 400 * HOUR) for n in range(3)]
    for one in made:
        lake.write_predictions([one])
    batch(lake)
    for one in made:
        asked.clear()
        assert lake.find_prediction(one.id) == one
        assert asked == {"ListObjectsV2": 1, "GetObject": 1}


def test_predictions_in_both_places_come_in_the_order_of_their_ids_and_each_object_is_read_once(
    lake: Lake, asked: Counter[str]
) -> None:
    made = [prediction(NOW + n % 30) for n in range(60)]
    for _, some in groupby(sorted(made[:45], key=lambda one: one.time), lambda one: one.time):
        lake.write_predictions(list(some))
    batch(lake)
    for one in made[45:]:
        lake.write_predictions([one])
    asked.clear()
    wanted = [one.id for one in made[::-2]]
    found = [one for some in lake.find_predictions([*wanted, "nonsense", new_id(NOW, bytes(10))]) for one in some]
    assert [one.id for one in found] == sorted(wanted)
    assert asked["GetObject"] <= 1 + 15


def test_a_prediction_that_is_batched_while_it_is_looked_for_is_found(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = prediction(NOW), prediction(NOW + HOUR)
    lake.write_predictions([one])
    look = lake._new_predictions

    def too_late(times: Sequence[int]) -> list[dict[str, Prediction]]:
        batch(lake)
        return look(times)

    monkeypatch.setattr(lake, "_new_predictions", too_late)
    assert lake.find_prediction(one.id) == one
    lake.write_predictions([other])

    def deleted(key: str) -> list[bytes]:
        batch(Lake(lake.bucket, lake.s3))
        return lines(key)

    monkeypatch.setattr(lake, "_new_predictions", look)
    lines = lake._lines
    monkeypatch.setattr(lake, "_lines", lambda key: deleted(key) if key.startswith(CAPTURE) else lines(key))
    assert lake.find_prediction(other.id) == other


@pytest.mark.parametrize("id", ["", "nonsense", "../../ledger/x", new_id(NOW, bytes(10))])
@pytest.mark.parametrize("batched", [False, True])
def test_an_id_that_was_never_given_is_not_found(lake: Lake, id: str, batched: bool) -> None:
    lake.write_predictions([prediction(NOW)])
    if batched:
        batch(lake)
    with pytest.raises(NotFound, match="no prediction with this id"):
        lake.find_prediction(id)


def test_the_same_predictions_written_twice_are_one_object(lake: Lake) -> None:
    batch = [prediction(NOW), prediction(NOW)]
    assert lake.write_predictions(batch) == lake.write_predictions(batch)
    assert len(list(lake.keys(CAPTURE))) == 1


def test_labels_are_kept_by_the_time_they_arrived(lake: Lake) -> None:
    old = prediction(NOW - 40 * 24 * HOUR)
    first, second = label(NOW - 1, old), label(NOW, old)
    assert lake.write_labels([first]).startswith(hour_prefix(FEEDBACK, NOW))
    lake.write_labels([second])
    assert list(lake.newest_labels(NOW, hours=1)) == [second, first]


def test_predictions_since_a_time_are_given_once_whether_batched_or_not(lake: Lake) -> None:
    made = [prediction(NOW + minutes * 60_000) for minutes in (-90, -31, -2, -1, 0, 5, 61)]
    for one in made[:5]:
        lake.write_predictions([one])
    batch(lake)
    for one in made[4:]:  # the fifth lies in both places, as while the monitor moves it
        lake.write_predictions([one])
    since = NOW - 90_000
    found = list(lake.predictions_since(since))
    assert sorted(found, key=lambda one: one.id) == made[3:]
    assert list(lake.predictions_since(NOW + 62 * 60_000)) == []


def test_labels_come_newest_first_from_both_places(lake: Lake) -> None:
    old = prediction(NOW - 90 * 24 * HOUR)
    made = [label(NOW - n * 13 * 60_000, old) for n in range(20)]
    for late in (made[3::5], made[1::4], made[0::2]):  # batches of one hour that overlap, and the last not batched
        batch(lake)
        for one in late:
            lake.write_labels([one])
    written = {one.time for late in (made[3::5], made[1::4], made[0::2]) for one in late}
    found = list(lake.newest_labels(NOW, hours=24))
    assert {one.time for one in found} == written
    assert [one.time for one in found] == sorted((one.time for one in found), reverse=True)


def test_of_batched_labels_only_the_days_asked_for_are_listed_and_read(lake: Lake, asked: Counter[str]) -> None:
    old = prediction(NOW - 90 * 24 * HOUR)
    made = [label(NOW - n * 24 * HOUR, old) for n in range(12)]
    for one in made:
        lake.write_labels([one])
    batch(lake)
    assert len(list(lake.keys(LABELLED))) == 12
    asked.clear()
    assert list(lake.newest_labels(NOW, hours=5 * 24)) == made[:6]
    assert asked == {"ListObjectsV2": 2, "GetObject": 6}


def test_a_label_that_is_batched_while_labels_are_read_is_not_missed(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = label(NOW, prediction(NOW - HOUR))
    lake.write_labels([one])
    lines = lake._lines

    def deleted(key: str) -> list[bytes]:
        batch(Lake(lake.bucket, lake.s3))
        return lines(key)

    with monkeypatch.context() as patch:
        patch.setattr(lake, "_lines", lambda key: deleted(key) if key.startswith(FEEDBACK) else lines(key))
        assert list(lake.newest_labels(NOW, hours=1)) == [one]
    assert list(lake.newest_labels(NOW, hours=1)) == [one]


def test_objects_are_deleted_many_at_a_time_and_those_that_have_gone_do_no_harm(
    lake: Lake, asked: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retrue.lake.MOST_DELETED", 2)
    for name in "abcde":
        lake.put(name, b"")
    asked.clear()
    lake.delete(["a", "b", "gone", "c", "d"])
    assert asked == {"DeleteObjects": 3}
    lake.delete([])
    assert list(lake.keys("")) == ["e"]


def test_what_may_not_be_deleted_is_an_error_though_the_answer_is_good(lake: Lake) -> None:
    refused = {"Key": "a", "Code": "AccessDenied", "Message": "Access Denied"}
    with Stubber(lake.s3) as answers:
        answers.add_response("delete_objects", {"Errors": [refused]})
        with pytest.raises(ClientError, match="AccessDenied"):
            lake.delete(["a"])


def test_a_document_is_written_only_over_the_version_that_was_read(lake: Lake) -> None:
    assert lake.get_versioned("state.json") == (None, None)
    assert lake.put_json_if("state.json", {"checks": 1}, None)
    assert not lake.put_json_if("state.json", {"checks": "also first"}, None)
    value, version = lake.get_versioned("state.json")
    assert value == {"checks": 1}
    assert lake.put_json_if("state.json", {"checks": 2}, version)
    assert not lake.put_json_if("state.json", {"checks": "also second"}, version)
    assert lake.get_json("state.json") == {"checks": 2}


def test_a_document_that_was_deleted_is_not_written_over(lake: Lake) -> None:
    lake.put_json("state.json", {})
    _, version = lake.get_versioned("state.json")
    lake.delete(["state.json"])
    assert not lake.put_json_if("state.json", {"checks": 1}, version)
    assert list(lake.keys("")) == []


@pytest.mark.parametrize(("table", "record"), [("predictions", Prediction), ("labelled", Label)])
def test_the_page_has_a_table_with_the_columns_of_the_records(table: str, record: type) -> None:
    kinds = {str: "string", int: "int", float: "double", bool: "boolean"}
    kinds |= {dict[str, float]: "map<string,double>", list[float]: "array<double>", str | None: "string"}
    page = (Path(__file__).parents[1] / "docs/lake.md").read_text()
    columns, rest = page.partition(f"CREATE EXTERNAL TABLE {table} (\n")[2].partition(";\n")[0].split("\n)\n", 1)
    told = [line.strip().rstrip(",").replace("`", "").split(" ") for line in columns.splitlines()]
    assert told == [[name, kinds[kind]] for name, kind in get_type_hints(record).items()]
    assert f"'s3://BUCKET/{table}/date=${{date}}/hour=${{hour}}/'" in rest
    assert hour_prefix(f"{table}/", NOW) == f"{table}/date=2026-01-01/hour=09/"


def test_put_new_lets_the_first_writer_win(lake: Lake) -> None:
    assert lake.put_new("a", b"first")
    assert not lake.put_new("a", b"second")
    assert lake.get("a") == b"first"


@pytest.mark.parametrize("read", ["get", "open", "get_json"])
def test_a_missing_object_is_named_in_the_error(lake: Lake, read: str) -> None:
    with pytest.raises(NotFound, match="s3://lake/nothing"):
        getattr(lake, read)("nothing")


def test_keys_begin_behind_a_key(lake: Lake) -> None:
    for name in ("p/a", "p/b", "p/c", "q/a"):
        lake.put(name, b"")
    assert list(lake.keys("p/", after="p/a")) == ["p/b", "p/c"]


def test_a_stream_gives_what_was_put(lake: Lake) -> None:
    lake.put("big", b"x" * 100_000)
    with lake.open("big") as stream:
        assert stream.read(3) == b"xxx"


def test_a_folder_comes_back_as_it_was_sent(lake: Lake, tmp_path: Path) -> None:
    for name, body in {"card.json": b"{}", "deep/down/file": b"\x00\x01"}.items():
        path = tmp_path / "out" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
    lake.upload_folder(tmp_path / "out", "models/m1/")
    lake.put("models/m10/card.json", b"another model")
    paths = lake.download_folder("models/m1/", tmp_path / "in")
    assert sorted(path.relative_to(tmp_path / "in").as_posix() for path in paths) == ["card.json", "deep/down/file"]
    assert (tmp_path / "in/deep/down/file").read_bytes() == b"\x00\x01"


def test_only_the_files_that_are_named_are_fetched(lake: Lake, tmp_path: Path) -> None:
    for name in ("card.json", "card.md", "deep/card.json"):
        lake.put(f"models/m1/{name}", b"{}")
    assert lake.download_folder("models/m1/", tmp_path, ("card.json", "model.onnx")) == [tmp_path / "card.json"]
    with pytest.raises(NotFound, match="s3://lake/models/m1/"):
        lake.download_folder("models/m1/", tmp_path, ("model.onnx",))


def test_a_folder_that_is_not_there_is_not_found(lake: Lake, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="s3://lake/models/gone/"):
        lake.download_folder("models/gone/", tmp_path)


def test_a_job_comes_back_as_it_was_written(lake: Lake) -> None:
    job = Job("0f1e2d", "predict", "s3://lake/incoming/a.csv", "done", iso(NOW), rows=3, seconds=0.5)
    lake.write_job(job)
    assert lake.read_job("0f1e2d") == job


@pytest.mark.parametrize("id", ["", "gone", "../ledger/x", "a/b"])
def test_a_job_that_never_was_is_not_found(lake: Lake, id: str) -> None:
    lake.put("ledger/x.json", b"{}")
    with pytest.raises(NotFound):
        lake.read_job(id)


def test_the_ledger_keeps_entries_of_one_millisecond_in_order(lake: Lake) -> None:
    entries = [LedgerEntry(iso(NOW), "promoted", f"m{i}", "better") for i in range(3)]
    for entry in entries:
        lake.append_ledger(entry)
    assert lake.ledger() == entries
    assert len(list(lake.keys(LEDGER))) == 3


def test_json_documents_keep_their_letters(lake: Lake) -> None:
    lake.put_json("reports/latest.json", {"reason": "schön", "p": 0.5})
    assert lake.get_json("reports/latest.json") == {"reason": "schön", "p": 0.5}


def test_a_uri_splits_into_bucket_and_key(lake: Lake) -> None:
    assert split_uri(lake.uri("models/m1/")) == ("lake", "models/m1/")
