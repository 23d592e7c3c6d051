"""A large CSV in parts, held to what one run makes of the same file."""

import csv
import dataclasses
import gzip
import io
import itertools
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto import mock_aws

from retrue import corpus, jobs, labelling, parts, scoring
from retrue.classifier import Classifier
from retrue.lake import CAPTURE, FEEDBACK, Lake
from retrue.records import Job
from retrue.settings import Batch

BUCKET, KEY = "retrue-test", "incoming/many.csv"
MS = 1_795_339_800_123
SETTINGS = Batch(BUCKET, "test", "/retrue/test/model", "", max_characters=2_000)
TEXTS = [example.text for example in corpus.generate(seed=7, rows=60, domain="films")]


@pytest.fixture
def lake() -> Iterator[Lake]:
    with mock_aws():
        client = boto3.client("s3")
        client.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
        yield Lake(BUCKET, client)


@pytest.fixture(scope="module")
def classifier(tiny_model: Path) -> Classifier:
    return Classifier.open(tiny_model)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts and chunks so small that a small file has several."""
    for module in (jobs, scoring, labelling):
        monkeypatch.setattr(module, "CHUNK", 8)
    monkeypatch.setattr(parts, "ROWS", 16)


def plenty() -> float:
    return 900.0


def now() -> float:
    return MS / 1000 + 60


def csv_file(header: list[str] = ["id", "text"]) -> bytes:  # noqa: B006 - nobody changes it
    """56 rows that can be answered and four of all kinds that cannot: in four parts, the last not full."""
    stream = io.StringIO(newline="")
    writer = csv.writer(stream)
    writer.writerow(header)
    for number, text in enumerate(TEXTS, 1):
        values = {"id": f"r{number}", "text": text + ("\nwith a second line" if number % 7 == 0 else "")}
        values |= {5: {"text": " "}, 20: {"text": "x" * 3_000}}.get(number, {})
        writer.writerow([values.get(name.lower(), "other") for name in header] + (["more"] if number == 33 else []))
    return stream.getvalue().encode().replace(b"r41,", b"r41 \xff,")


def begun(lake: Lake, body: bytes, key: str = KEY, classifier: Classifier | None = None) -> Job:
    lake.put(key, body, "text/csv")
    return jobs.start(lake, "predict", key, "identity", MS, classifier.model if classifier else "m")


def cut(lake: Lake, job: Job, body: bytes, remaining: jobs.Clock = plenty) -> dict[str, Any]:
    return parts.cut(lake, job, len(body), SETTINGS, now, remaining)


def through(lake: Lake, classifier: Classifier, body: bytes, key: str = KEY, but: tuple[int, ...] = ()) -> Job:
    """The job as the workflow does it, last part first; those in `but` never come."""
    job = begun(lake, body, key, classifier)
    plan = cut(lake, job, body)
    for part in reversed(list(lake.keys(plan["rows"]))):
        if parts.number_of(part) not in but:
            parts.score(lake, classifier, job, parts.number_of(part), SETTINGS, plenty)
    return parts.join(lake, lake.read_job(job.id), SETTINGS, now)


def content(lake: Lake, key: str) -> bytes:
    """An object, unpacked: gzip files of the same content may be cut differently."""
    body = lake.get(key)
    return gzip.decompress(body) if key.endswith(".gz") else body


def table(lake: Lake, job: Job, name: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(content(lake, f"results/{job.id}/{name}").decode(), newline="")))


@pytest.mark.parametrize("key", [KEY, KEY + ".gz"])
@pytest.mark.parametrize("header", [["id", "text"], ["text"], ["Label", "TEXT", "score"]])
def test_parts_make_what_one_run_makes(lake: Lake, classifier: Classifier, key: str, header: list[str]) -> None:
    body = csv_file(header)
    packed = gzip.compress(body) if key.endswith(".gz") else body
    alone = scoring.score_file(lake, classifier, begun(lake, packed, key, classifier), SETTINGS, now, plenty)
    places = (f"results/{alone.id}/", CAPTURE)
    wanted = {name: content(lake, name) for place in places for name in lake.keys(place)}
    lake.delete([name for name in lake.keys("") if not name.startswith("incoming/")])

    job = through(lake, classifier, packed, key)
    found = {name: content(lake, name) for place in places for name in lake.keys(place)}
    assert dataclasses.replace(job, seconds=alone.seconds) == alone
    assert (job.state, job.rows, job.rejected) == ("done", 60, 3 + ("id" in header))
    manifest = f"results/{job.id}/manifest.json"
    told, before = json.loads(found.pop(manifest)), json.loads(wanted.pop(manifest))
    assert found == wanted
    assert told.pop("parts") == 4
    assert {**told, "seconds": None} == {**before, "seconds": None}
    assert lake.read_job(job.id) == job


def test_labels_find_the_rows_of_every_part(lake: Lake, classifier: Classifier) -> None:
    job = through(lake, classifier, csv_file())
    lake.put(f"labels/{job.id}/truth.csv", b"id,label\nr1,positive\nr18,negative\nr60,positive\n")
    label = jobs.start(lake, "label", f"labels/{job.id}/truth.csv", "identity", MS + 60_000)
    told = labelling.label_file(lake, label, SETTINGS, now, plenty)
    assert (told.accepted, told.rejected) == (3, 0)
    assert len(list(lake.keys(FEEDBACK))) == 1


@pytest.mark.parametrize("lost", [(0,), (2,), (0, 3)])
def test_the_rows_of_a_part_that_failed_are_handed_back(
    lake: Lake, classifier: Classifier, lost: tuple[int, ...]
) -> None:
    whole = table(lake, through(lake, classifier, csv_file()), "results.csv")
    lake.delete(list(lake.keys("")))
    job = through(lake, classifier, csv_file(), but=lost)
    assert (job.state, job.error) == ("done", parts.SOME_FAILED)
    gone = {f"r{number}" for number in range(1, 61) if (number - 1) // 16 in lost}
    assert table(lake, job, "results.csv") == [cells for cells in whole if cells[0] not in gone]
    header, *refused = table(lake, job, "rejects.csv")
    assert header == ["row", "reason", "id", "text"]
    assert [int(cells[0]) for cells in refused] == sorted(int(cells[0]) for cells in refused)
    answered = {cells[0] for cells in table(lake, job, "results.csv")[1:]}
    assert {f"r{cells[0]}" for cells in refused} == {f"r{number}" for number in range(1, 61)} - answered
    # Every row that was good comes back as it was, to be put into a new file.
    back = {cells[2]: cells[3] for cells in refused if cells[1] == parts.UNANSWERED}
    assert back.keys() == {cells[0] for cells in whole[1:]} & gone
    assert all(text.startswith(TEXTS[int(id[1:]) - 1]) for id, text in back.items())
    assert table(lake, job, "ids.csv.gz")[0] == ["id", "prediction_id"]
    assert (job.accepted, job.rejected) == (len(answered), len(refused))


def test_a_job_of_which_no_part_came_has_failed_and_hands_everything_back(lake: Lake, classifier: Classifier) -> None:
    job = through(lake, classifier, csv_file(), but=(0, 1, 2, 3))
    assert (job.state, job.error, job.accepted, job.rejected) == ("failed", parts.ALL_FAILED, 0, 60)
    assert [int(cells[0]) for cells in table(lake, job, "rejects.csv")[1:]] == list(range(1, 61))


def test_a_part_is_done_once_and_what_is_done_again_changes_nothing(lake: Lake, classifier: Classifier) -> None:
    job = through(lake, classifier, csv_file())
    before = {name: lake.get(name) for name in lake.keys("")}
    for number in range(4):
        parts.score(lake, classifier, job, number, SETTINGS, plenty)
    assert {name: lake.get(name) for name in lake.keys("")} == before
    # A run that broke off before its counts were written does the part anew, to the same records.
    lake.delete([f"parts/{job.id}/000001/counts.json"])
    parts.score(lake, classifier, job, 1, SETTINGS, plenty)
    assert {name: content(lake, name) for name in lake.keys(CAPTURE)} == {
        name: gzip.decompress(body) for name, body in before.items() if name.startswith(CAPTURE)
    }
    assert parts.join(lake, lake.read_job(job.id), SETTINGS, now) == job


def test_rows_that_time_does_not_allow_are_handed_back(lake: Lake, classifier: Classifier) -> None:
    body = csv_file()
    job = begun(lake, body, classifier=classifier)
    cut(lake, job, body)
    clock = itertools.chain([900.0], itertools.repeat(1.0))
    for number in range(4):
        parts.score(lake, classifier, job, number, SETTINGS, lambda: next(clock) if number == 1 else 900.0)  # noqa: B023
    ended = parts.join(lake, job, SETTINGS, now)
    assert (ended.state, ended.error) == ("done", jobs.LATE_ERROR)
    late = [int(cells[0]) for cells in table(lake, ended, "rejects.csv")[1:] if cells[1] == jobs.LATE]
    assert late
    assert {(number - 1) // 16 for number in late} == {1}


def test_a_job_tells_how_many_rows_are_done_while_parts_end_at_the_same_time(
    lake: Lake, classifier: Classifier
) -> None:
    body = csv_file()
    job = begun(lake, body, classifier=classifier)
    cut(lake, job, body)
    assert lake.read_job(job.id).rows == 0
    parts.score(lake, classifier, job, 0, SETTINGS, plenty)
    told = lake.read_job(job.id)
    assert (told.state, told.rows, told.accepted, told.rejected) == ("running", 16, 15, 1)
    others = [
        threading.Thread(target=parts.score, args=(lake, classifier, job, number, SETTINGS, plenty))
        for number in (1, 2, 3)
    ]
    for other in others:
        other.start()
    for other in others:
        other.join()
    told = lake.read_job(job.id)
    assert (told.state, told.rows, told.accepted, told.rejected) == ("running", 60, 56, 4)


def test_a_header_alone_gives_a_header_alone(lake: Lake, classifier: Classifier) -> None:
    job = through(lake, classifier, b"text\n")
    assert (job.state, job.rows, job.error) == ("done", 0, None)
    assert table(lake, job, "results.csv") == [["text", "label", "score", "prediction_id"]]
    assert table(lake, job, "rejects.csv") == [["row", "reason", "text"]]


@pytest.mark.parametrize(
    ("key", "body", "remedy"),
    [
        (KEY, b"", "put a header"),
        (KEY, b"a,b\n1,2\n", "rename one"),
        (KEY, b"text,id,ID\na,1,2\n", "keep one"),
        (KEY + ".gz", b"text\n", "compress it again"),
    ],
    ids=["empty", "no text column", "two ids", "no gzip"],
)
def test_a_file_that_cannot_be_read_ends_its_job_with_a_remedy(lake: Lake, key: str, body: bytes, remedy: str) -> None:
    job = begun(lake, body, key)
    assert cut(lake, job, body)["parts"] == 0
    ended = lake.read_job(job.id)
    assert ended.state == "failed"
    assert remedy in (ended.error or "")
    assert list(lake.keys("parts/")) == []


def test_a_file_that_takes_too_long_to_cut_or_is_too_large_is_refused_before_anything_is_classified(lake: Lake) -> None:
    body = csv_file()
    job = begun(lake, body)
    assert cut(lake, job, body, remaining=lambda: 1.0)["parts"] == 0
    assert lake.read_job(job.id).error == parts.TOO_LONG
    clock = iter([900.0] * 4 + [1.0])  # all four parts are written by then
    assert cut(lake, begun(lake, body, "incoming/just.csv"), body, remaining=lambda: next(clock))["parts"] == 4
    job = begun(lake, body, "incoming/huge.csv")
    assert parts.cut(lake, job, 6_000_000_000, SETTINGS, now, plenty)["parts"] == 0
    assert "6.0 GB" in (lake.read_job(job.id).error or "")


def test_what_lies_before_the_damage_in_a_gzip_file_is_answered(lake: Lake, classifier: Classifier) -> None:
    body = gzip.compress(csv_file())
    job = through(lake, classifier, body[: len(body) // 2], KEY + ".gz")
    assert job.state == "failed"
    assert "damaged behind row" in (job.error or "")
    assert 0 < job.accepted < 56
    assert len(table(lake, job, "results.csv")) == job.accepted + 1


@pytest.mark.parametrize(
    ("key", "size", "needed"),
    [
        ("a.csv", 5_000_000, False),
        ("a.csv", 5_000_001, True),
        ("a.csv.gz", 1_666_666, False),
        ("a.csv.gz", 1_700_000, True),
    ],
)
def test_parts_are_needed_beyond_the_limit_and_a_packed_file_counts_thrice(key: str, size: int, needed: bool) -> None:
    assert parts.are_needed(key, size, 5.0) is needed
