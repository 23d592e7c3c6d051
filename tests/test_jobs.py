"""CSV jobs from the file that was dropped to what lies in the lake afterwards."""

import csv
import gzip
import hashlib
import io
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto import mock_aws

from retrue import corpus, intake, jobs, labelling, scoring
from retrue.classifier import Classifier
from retrue.intake import Intake
from retrue.lake import CAPTURE, FEEDBACK, PREDICTIONS, Lake
from retrue.records import Job, Label, Prediction, id_ms, iso, kept, new_id
from retrue.settings import Batch

BUCKET = "retrue-test"
MS = 1_795_339_800_123  # 2026-11-22T09:30:00.123Z
SETTINGS = Batch(BUCKET, "test", "/retrue/test/model", "", max_characters=2000)
TEXTS = [example.text for example in corpus.generate(seed=7, rows=12, domain="films")]


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    with mock_aws():
        yield boto3.client("s3")


@pytest.fixture
def lake(s3: Any) -> Iterator[Lake]:
    s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
    yield Lake(BUCKET, s3)
    for item in s3.list_objects_v2(Bucket=BUCKET).get("Contents", ()):
        s3.delete_object(Bucket=BUCKET, Key=item["Key"])
    s3.delete_bucket(Bucket=BUCKET)


@pytest.fixture(scope="module")
def classifier(tiny_model: Path) -> Classifier:
    return Classifier.open(tiny_model)


def plenty() -> float:
    return 900.0


def ticking(step: float = 0.01) -> Callable[[], float]:
    counter = itertools.count()
    return lambda: MS / 1000 + next(counter) * step


def csv_file(table: list[list[str]]) -> bytes:
    stream = io.StringIO(newline="")
    csv.writer(stream).writerows(table)
    return stream.getvalue().encode()


def drop(
    lake: Lake,
    classifier: Classifier,
    body: bytes,
    key: str = "incoming/reviews.csv",
    settings: Batch = SETTINGS,
    remaining: Callable[[], float] = plenty,
    ms: int = MS,
) -> Job:
    lake.put(key, body, "text/csv")
    job = jobs.start(lake, "predict", key, "identity", ms, classifier.model)
    return scoring.score_file(lake, classifier, job, settings, ticking(), remaining)


def drop_labels(
    lake: Lake,
    body: bytes,
    key: str = "labels/truth.csv",
    remaining: Callable[[], float] = plenty,
    identity: str = "identity",
    ms: int = MS + 60_000,
    settings: Batch = SETTINGS,
) -> Job:
    lake.put(key, body, "text/csv")
    job = jobs.start(lake, "label", key, identity, ms)
    return labelling.label_file(lake, job, settings, ticking(), remaining)


def table(lake: Lake, job: Job, name: str) -> list[list[str]]:
    body = lake.get(f"results/{job.id}/{name}")
    text = (gzip.decompress(body) if name.endswith(".gz") else body).decode()
    return list(csv.reader(io.StringIO(text, newline="")))


def captured(lake: Lake) -> list[Prediction]:
    return [
        Prediction.from_json(line) for key in lake.keys(CAPTURE) for line in gzip.decompress(lake.get(key)).splitlines()
    ]


def labelled(lake: Lake) -> list[Label]:
    return [
        Label.from_json(line) for key in lake.keys(FEEDBACK) for line in gzip.decompress(lake.get(key)).splitlines()
    ]


def everything(lake: Lake) -> dict[str, bytes]:
    return {key: lake.get(key) for key in lake.keys("")}


def test_every_row_is_answered_as_the_classifier_answers_it_alone(lake: Lake, classifier: Classifier) -> None:
    job = drop(lake, classifier, csv_file([["id", "Text"], *[[str(n), text] for n, text in enumerate(TEXTS)]]))
    header, *answered = table(lake, job, "results.csv")
    assert header == ["id", "Text", "label", "score", "prediction_id"]
    for cells, text, record in zip(answered, TEXTS, captured(lake), strict=True):
        alone = classifier.score(text)
        assert cells[1:3] == [text, alone.label]
        assert float(cells[3]) == pytest.approx(alone.score, abs=1e-6)
        assert cells[4] == record.id
        assert (record.label, record.scores, record.tokens) == (alone.label, alone.scores, alone.tokens)
        assert record.projection == pytest.approx(alone.projection.tolist(), abs=1e-6)
    assert (job.state, job.rows, job.accepted, job.rejected, job.error) == ("done", 12, 12, 0, None)
    assert lake.read_job(job.id) == job


@pytest.mark.parametrize(
    "body",
    [
        "\ufefftext\r\ngood film\r\nbad film\r\n".encode(),
        b'text\n"good film"\nbad film',
        b"whatever\ngood film\nbad film\n",
        b"id,TEXT ,stars\n1,good film,5\n2,bad film,1\n",
    ],
)
def test_files_as_people_make_them_are_all_read(lake: Lake, classifier: Classifier, body: bytes) -> None:
    job = drop(lake, classifier, body, settings=Batch(**{**vars(SETTINGS), "keep_text": True}))
    assert (job.state, job.accepted, job.rejected) == ("done", 2, 0)
    assert [record.text for record in captured(lake)] == ["good film", "bad film"]


def test_a_quoted_line_end_and_a_next_line_character_stay_inside_their_row(lake: Lake, classifier: Classifier) -> None:
    texts = ["first line\r\nsecond line", "before\x85after", "plain"]
    job = drop(lake, classifier, csv_file([["text"], *[[text] for text in texts]]))
    assert [cells[0] for cells in table(lake, job, "results.csv")[1:]] == texts


def test_a_gzip_file_gives_the_answers_of_the_plain_file(lake: Lake, classifier: Classifier) -> None:
    body = csv_file([["text"], *[[text] for text in TEXTS]])
    plain = drop(lake, classifier, body)
    packed = drop(lake, classifier, gzip.compress(body), "incoming/reviews.csv.gz")
    assert packed.id != plain.id
    answers = [[cells[:3] for cells in table(lake, job, "results.csv")] for job in (plain, packed)]
    assert answers[0] == answers[1]


@pytest.mark.parametrize("key", ["incoming/a b.csv", "incoming/a+b%2B.csv", "incoming/früh/ö 評.csv"])
def test_keys_may_hold_anything(lake: Lake, classifier: Classifier, key: str) -> None:
    job = drop(lake, classifier, b"text\ngood film\n", key)
    assert (job.state, job.accepted, job.input) == ("done", 1, f"s3://{BUCKET}/{key}")


def test_bad_rows_in_the_middle_are_refused_with_their_cells_and_cost_no_other_row(
    lake: Lake, classifier: Classifier
) -> None:
    body = (
        b"id,text\n1,good film\n2,\n3,too,many\n4,"
        + b"x" * 2001
        + b'\n5,\xff\xfe\n6,nul\0\n7,bad film\n8,"open\n9,fine film\n'
    )
    job = drop(lake, classifier, body)
    assert [cells[0] for cells in table(lake, job, "results.csv")[1:]] == ["1", "7", "9"]
    header, *refused = table(lake, job, "rejects.csv")
    assert header == ["row", "reason", "id", "text"]
    assert [(cells[0], cells[2]) for cells in refused] == [(str(n), str(n)) for n in (2, 3, 4, 5, 6, 8)]
    assert [cells[1].split(":")[0] for cells in refused] == [
        "the text is empty",
        "3 cells where the header has 2",
        "the text has 2001 characters, more than 2000",
        "it is not UTF-8",
        "it holds a NUL character",
        "a double quote is opened and never closed",
    ]
    assert refused[1][2:] == ["3", "too", "many"]
    assert (job.rows, job.accepted, job.rejected) == (9, 3, 6)


def test_columns_of_the_input_are_never_overwritten(lake: Lake, classifier: Classifier) -> None:
    job = drop(lake, classifier, b"label,text,row\nmine,good film,x\nyours,,y\n")
    assert table(lake, job, "results.csv")[0] == ["label", "text", "row", "label_2", "score", "prediction_id"]
    assert table(lake, job, "results.csv")[1][0] == "mine"
    assert table(lake, job, "rejects.csv")[0] == ["row_2", "reason", "label", "text", "row"]


def test_the_manifest_says_what_was_done(lake: Lake, classifier: Classifier) -> None:
    body = b"id,text\n1,good film\n2,\n"
    job = drop(lake, classifier, body)
    manifest = lake.get_json(f"results/{job.id}/manifest.json")
    assert manifest["sha256"] == hashlib.sha256(body).hexdigest()
    assert manifest["columns"] == ["id", "text"]
    assert manifest["files"] == ["results.csv", "rejects.csv", "ids.csv.gz"]
    assert {k: manifest[k] for k in ("rows", "accepted", "rejected", "model", "input", "state")} == {
        "rows": 2,
        "accepted": 1,
        "rejected": 1,
        "model": classifier.model,
        "input": f"s3://{BUCKET}/incoming/reviews.csv",
        "state": "done",
    }
    assert manifest["seconds"] == job.seconds
    assert job.seconds is not None
    assert job.seconds > 0


def test_ids_are_written_only_where_the_file_has_them(lake: Lake, classifier: Classifier) -> None:
    with_ids = drop(lake, classifier, b"ID,text\n a1 ,good film\n")
    assert table(lake, with_ids, "ids.csv.gz") == [["id", "prediction_id"], ["a1", captured(lake)[0].id]]
    without = drop(lake, classifier, b"text\ngood film\n", "incoming/other.csv")
    assert f"results/{without.id}/ids.csv.gz" not in everything(lake)
    assert table(lake, without, "rejects.csv") == [["row", "reason", "text"]]


def test_a_second_delivery_changes_nothing(lake: Lake, classifier: Classifier) -> None:
    job = drop(lake, classifier, b"text\ngood film\n")
    before = everything(lake)
    again = jobs.start(lake, "predict", "incoming/reviews.csv", "identity", MS, "another-model")
    assert again == job
    assert again.state == "done"
    assert everything(lake) == before


def test_another_file_under_the_same_key_is_another_job(lake: Lake) -> None:
    first = jobs.job_id(BUCKET, "incoming/a.csv", "one")
    assert first != jobs.job_id(BUCKET, "incoming/a.csv", "two")
    assert len(first) == 20
    assert int(first, 16) >= 0


class CrashingError(Exception):
    pass


def test_a_crash_in_the_middle_and_another_run_give_one_record_a_row(
    lake: Lake, classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "CHUNK", 4)
    body = csv_file([["text"], *[[text] for text in TEXTS]])
    score, calls = Classifier.score_many, itertools.count(1)

    def crash_at_the_third(self: Classifier, texts: list[str]) -> Any:
        if next(calls) == 3:
            raise CrashingError
        return score(self, texts)

    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "score_many", crash_at_the_third)
        with pytest.raises(CrashingError):
            drop(lake, classifier, body)
    crashed = lake.read_job(jobs.job_id(BUCKET, "incoming/reviews.csv", "identity"))
    assert crashed.state == "running"
    assert len(captured(lake)) == 8

    job = drop(lake, classifier, body, ms=MS + 5)  # the ids keep the time of the first event
    records = captured(lake)
    assert len(records) == len({record.id for record in records}) == len(TEXTS)
    assert [cells[3] for cells in table(lake, job, "results.csv")[1:]] == [record.id for record in records]
    assert [id_ms(record.id) for record in records] == [MS + n // 4 for n in range(12)]
    assert all(record.time == iso(id_ms(record.id) or 0) for record in records)
    assert {record.source for record in records} == {f"csv:{job.id}"}


def test_a_run_taken_up_again_keeps_the_model_it_began_with(lake: Lake) -> None:
    jobs.start(lake, "predict", "incoming/a.csv", "identity", MS, "first")
    assert jobs.start(lake, "predict", "incoming/a.csv", "identity", MS, "second").model == "first"


def test_a_job_that_failed_for_want_of_a_model_is_taken_up_with_the_next_one(lake: Lake) -> None:
    waiting = jobs.start(lake, "predict", "incoming/a.csv", "identity", MS, None)
    failed = jobs.fail(lake, waiting, "no model is serving yet")
    assert lake.read_job(waiting.id) == failed
    taken_up = jobs.start(lake, "predict", "incoming/a.csv", "identity", MS, "first")
    assert (taken_up.state, taken_up.model, taken_up.error) == ("running", "first", None)


def test_rows_that_time_does_not_allow_are_handed_back(
    lake: Lake, classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "CHUNK", 3)
    left = iter([60.5, 59.9])
    body = csv_file([["id", "text"], *[[str(n), text] for n, text in enumerate(TEXTS)], ["12", ""]])
    job = drop(lake, classifier, body, remaining=lambda: next(left))
    assert (job.state, job.rows, job.accepted, job.rejected) == ("done", 13, 3, 10)
    assert job.error == "the time limit was near: the rows that were not reached are in rejects.csv"
    refused = table(lake, job, "rejects.csv")[1:]
    assert [cells[2:] for cells in refused[:-1]] == [[str(n), TEXTS[n]] for n in range(3, 12)]
    assert {cells[1] for cells in refused[:-1]} == {jobs.LATE}
    assert refused[-1][1] == "the text is empty"
    assert len(captured(lake)) == 3


@pytest.mark.parametrize(
    ("key", "body", "remedy"),
    [
        ("incoming/a.csv", b"", "the file is empty: put a header"),
        ("incoming/a.csv", b"id,review\n1,good\n", "no column is called `text`; the columns are `id`, `review`"),
        ("incoming/a.csv", gzip.compress(b"text\ngood\n"), "save the file as CSV UTF-8"),
        ("incoming/a.csv.gz", b"text\ngood\n", "no gzip file, or a damaged one"),
        ("incoming/a.csv.gz", gzip.compress(b"text\ngood\n")[:6], "no gzip file, or a damaged one"),
    ],
    ids=["empty", "no column", "packed", "unpacked", "cut"],  # gzip writes the time, which workers see differently
)
def test_a_file_that_cannot_be_read_fails_with_a_remedy_and_raises_nothing(
    lake: Lake, classifier: Classifier, key: str, body: bytes, remedy: str
) -> None:
    job = drop(lake, classifier, body, key)
    assert job.state == "failed"
    assert remedy in (job.error or "")
    assert lake.read_job(job.id) == job
    assert lake.get_json(f"results/{job.id}/manifest.json")["error"] == job.error
    assert captured(lake) == []


def test_a_file_that_was_removed_before_it_was_read_fails_and_raises_nothing(
    lake: Lake, classifier: Classifier
) -> None:
    job = jobs.start(lake, "predict", "incoming/gone.csv", "identity", MS, classifier.model)
    job = scoring.score_file(lake, classifier, job, SETTINGS, ticking(), plenty)
    assert (job.state, job.error) == ("failed", f"there is no s3://{BUCKET}/incoming/gone.csv")


def test_what_lies_before_the_damage_in_a_gzip_file_is_answered(lake: Lake, classifier: Classifier) -> None:
    body = gzip.compress(csv_file([["text"], *[[f"{n} {TEXTS[n % 12]}"] for n in range(400)]]))
    job = drop(lake, classifier, body[:-2000], "incoming/cut.csv.gz")
    assert job.state == "failed"
    assert 0 < job.accepted < 400
    assert f"damaged behind row {job.accepted}:" in (job.error or "")
    assert len(captured(lake)) == len(table(lake, job, "results.csv")) - 1 == job.accepted


def test_texts_are_captured_only_where_the_deployment_keeps_them(
    lake: Lake, classifier: Classifier, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    secret = "zanzibar"
    job = drop(lake, classifier, f"id,text\n1,a {secret} film\n2,{secret}{'x' * 3000}\n".encode())
    assert job.accepted == 1
    kept = {key: gzip.decompress(body) if key.endswith(".gz") else body for key, body in everything(lake).items()}
    # The user's own file and the results made of it hold the texts; nothing else does.
    assert {key.split("/")[0] for key, body in kept.items() if secret.encode() in body} == {"incoming", "results"}
    assert secret not in caplog.text + "".join(capfd.readouterr())


def test_progress_is_written_every_few_seconds(
    lake: Lake, classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Job] = []
    monkeypatch.setattr(lake, "write_job", written.append)
    lake.put("incoming/a.csv", csv_file([["text"], *[[text] for text in TEXTS]]))
    job = jobs.start(lake, "predict", "incoming/a.csv", "identity", MS, classifier.model)
    scoring.score_file(lake, classifier, job, SETTINGS, ticking(1.0), plenty)
    assert [(job.state, job.rows) for job in written][:2] == [("running", 0), ("running", 5)]
    assert len(written) < 8
    assert (written[-1].state, written[-1].rows) == ("done", 12)


# labels


def test_labels_name_predictions_by_their_id(lake: Lake, classifier: Classifier) -> None:
    drop(lake, classifier, csv_file([["text"], *[[text] for text in TEXTS]]))
    records = captured(lake)
    job = drop_labels(lake, csv_file([["id", "label"], *[[record.id, " positive "] for record in records]]))
    assert (job.state, job.kind, job.rows, job.accepted, job.rejected) == ("done", "label", 12, 12, 0)
    labels = {label.id: label for label in labelled(lake)}
    for record in records:
        label = labels[record.id]
        assert (label.label, label.predicted, label.model) == ("positive", record.label, classifier.model)
        assert (label.scores, label.source, label.time) == (record.scores, f"csv:{job.id}", iso(MS + 60_000))
    assert table(lake, job, "rejects.csv") == [["row", "reason", "id", "label"]]


def test_labels_name_predictions_by_the_ids_of_the_file_and_the_newest_file_wins(
    lake: Lake, classifier: Classifier
) -> None:
    drop(lake, classifier, b"id,text\na,good film\nb,bad film\n", "incoming/old.csv", ms=MS)
    newest = drop(lake, classifier, b"id,text\nb,bad film\nc,poor film\n", "incoming/new.csv", ms=MS + 10)
    drop(lake, classifier, b"text\nno ids here\n", "incoming/third.csv", ms=MS + 20)
    job = drop_labels(lake, b"label,id\nnegative,b\npositive,a\nnegative,c\n")
    assert (job.accepted, job.rejected) == (3, 0)
    by_id = {record.id: record for record in captured(lake)}
    assert Counter(by_id[label.id].source for label in labelled(lake))[f"csv:{newest.id}"] == 2


def test_labels_may_name_the_job_in_their_key(lake: Lake, classifier: Classifier) -> None:
    old = drop(lake, classifier, b"id,text\na,good film\n", "incoming/old.csv", ms=MS)
    drop(lake, classifier, b"id,text\na,bad film\nb,poor film\n", "incoming/new.csv", ms=MS + 10)
    job = drop_labels(lake, b"id,label\na,positive\nb,negative\n", f"labels/{old.id}/truth.csv")
    assert (job.accepted, job.rejected) == (1, 1)
    assert lake.find_prediction(labelled(lake)[0].id).source == f"csv:{old.id}"


def test_unknown_ids_and_labels_are_refused_with_their_reason(lake: Lake, classifier: Classifier) -> None:
    drop(lake, classifier, b"id,text\na,good film\nb,bad film\nb,twice\nc,poor film\n")
    stranger, farthest = new_id(MS, bytes(10)), new_id(2**48 - 1, bytes(10))
    body = "id,label,note\na,positive,n1\na,wonderful,n2\nc,dull,n3\nb,negative,n4\nzz,positive,n5\n"
    body += f"{stranger},positive,n6\n{farthest},positive,n7\n,positive,n8\nc,\nd\n"
    job = drop_labels(lake, body.encode())
    assert (job.rows, job.accepted, job.rejected) == (10, 0, 10)
    refused = table(lake, job, "rejects.csv")
    assert refused[0] == ["row", "reason", "id", "label", "note"]
    assert [(cells[0], cells[1].split(":")[0]) for cells in refused[1:]] == [
        ("1", "row 2 labels the same id"),
        ("2", "the label is none of negative, positive"),
        ("3", "the label is none of negative, positive"),
        ("4", "the id stands in more than one row of its CSV"),
        ("5", "there is no prediction with this id"),
        ("6", "there is no prediction with this id"),
        ("7", "there is no prediction with this id"),
        ("8", "the id or the label is empty"),
        ("9", "2 cells where the header has 3"),
        ("10", "1 cells where the header has 3"),
    ]
    assert refused[5][2:] == ["zz", "positive", "n5"]
    assert labelled(lake) == []


def test_ids_of_a_file_may_look_like_ids_of_predictions(lake: Lake, classifier: Classifier) -> None:
    own = new_id(MS - 1, b"0123456789")
    drop(lake, classifier, f"id,text\n{own},good film\n".encode())
    job = drop_labels(lake, f"id,label\n{own},positive\n".encode())
    assert (job.accepted, job.rejected) == (1, 0)
    assert labelled(lake)[0].id == captured(lake)[0].id


def test_the_objects_of_the_lake_are_read_once_however_the_rows_are_shuffled(
    lake: Lake, classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "CHUNK", 4)
    monkeypatch.setattr(labelling, "CHUNK", 4)
    drop(lake, classifier, csv_file([["text"], *[[text] for text in TEXTS]]))
    ids = [record.id for record in captured(lake)]
    shuffled = ids[::3] + ids[1::3] + ids[2::3]
    read: Counter[str] = Counter()
    get = lake.get

    def counting(key: str) -> bytes:
        read[key] += 1
        return get(key)

    with monkeypatch.context() as patch:
        patch.setattr(lake, "get", counting)
        job = drop_labels(lake, csv_file([["id", "label"], *[[id, "negative"] for id in shuffled]]))
    assert job.accepted == 12
    assert {key: count for key, count in read.items() if key.startswith(CAPTURE)} == dict.fromkeys(
        lake.keys(CAPTURE), 1
    )
    assert len(list(lake.keys(FEEDBACK))) == 3


def test_labels_find_batched_predictions_and_read_each_object_once(
    lake: Lake, classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "CHUNK", 1)
    monkeypatch.setattr(intake, "RECORDS", 5)
    drop(lake, classifier, csv_file([["id", "text"], *[[str(n), text] for n, text in enumerate(TEXTS)]]))
    with Intake(lake, Prediction) as found:
        records = list(found)
        found.commit()
    assert captured(lake) == []
    read: Counter[str] = Counter()
    get = lake.get
    monkeypatch.setattr(lake, "get", lambda key: (read.update([key]), get(key))[1])
    named = [[records[n].id if n % 2 else str(n), "negative"] for n in range(12)]
    job = drop_labels(lake, csv_file([["id", "label"], *named[::-1]]))
    assert (job.accepted, job.rejected) == (12, 0)
    told = {label.id: label for label in labelled(lake)}
    assert {one.id: (one.label, one.tokens, "csv") for one in records} == {
        label.id: (label.predicted, label.tokens, label.origin) for label in told.values()
    }
    # Once for ids of predictions, and once for those of the file.
    assert {key: count for key, count in read.items() if key.startswith(PREDICTIONS)} == dict.fromkeys(
        lake.keys(PREDICTIONS), 2
    )


def test_of_a_share_every_row_is_answered_and_only_those_kept_can_be_labelled(
    lake: Lake, classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "CHUNK", 2)
    half = Batch(**{**vars(SETTINGS), "capture_rate": 0.5})
    body = csv_file([["id", "text"], *[[str(n), text] for n, text in enumerate(TEXTS)]])
    job = drop(lake, classifier, body, settings=half)
    answered = [cells[4] for cells in table(lake, job, "results.csv")[1:]]
    expected = [id for id in answered if kept(id, 0.5)]
    assert 0 < len(expected) < len(answered) == job.accepted == 12
    assert [record.id for record in captured(lake)] == expected
    for names in (answered, [str(n) for n in range(12)]):
        labels = csv_file([["id", "label"], *[[name, "negative"] for name in names]])
        truth = drop_labels(lake, labels, settings=half, identity=names[0])
        assert (truth.accepted, truth.rejected) == (len(expected), 12 - len(expected))
        reasons = {cells[1] for cells in table(lake, truth, "rejects.csv")[1:]}
        assert reasons == {"no record of this prediction was kept: 50 % are, which their ids decide (CaptureRate)"}


def test_labels_delivered_again_or_after_a_crash_are_written_once(
    lake: Lake, classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "CHUNK", 4)
    monkeypatch.setattr(labelling, "CHUNK", 4)
    drop(lake, classifier, csv_file([["text"], *[[text] for text in TEXTS]]))
    body = csv_file([["id", "label"], *[[record.id, "negative"] for record in captured(lake)]])
    write, calls = lake.write_labels, itertools.count(1)

    def crash_at_the_second(labels: list[Label]) -> str:
        if next(calls) == 2:
            raise CrashingError
        return write(labels)

    with monkeypatch.context() as patch:
        patch.setattr(lake, "write_labels", crash_at_the_second)
        with pytest.raises(CrashingError):
            drop_labels(lake, body)
    assert len(labelled(lake)) == 4
    drop_labels(lake, body)
    labels = labelled(lake)
    assert len(labels) == len({label.id for label in labels}) == 12
    before = everything(lake)
    assert jobs.start(lake, "label", "labels/truth.csv", "identity", MS).state == "done"
    assert everything(lake) == before


def test_labels_that_time_does_not_allow_are_handed_back(lake: Lake, classifier: Classifier) -> None:
    drop(lake, classifier, b"id,text\na,good film\n")
    record = captured(lake)[0]
    job = drop_labels(lake, f"id,label\n{record.id},positive\na,positive\n".encode(), remaining=lambda: 5.0)
    assert (job.state, job.accepted, job.rejected) == ("done", 0, 2)
    assert [cells[1] for cells in table(lake, job, "rejects.csv")[1:]] == [jobs.LATE, jobs.LATE]


def test_a_label_file_without_its_columns_fails_with_a_remedy(lake: Lake) -> None:
    job = drop_labels(lake, b"id,truth\n1,positive\n")
    assert job.state == "failed"
    assert job.error == "labels need the columns `id` and `label`; the columns are `id`, `truth`: rename them"


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("incoming/a.csv", "predict"),
        ("incoming/deep/a.csv.gz", "predict"),
        ("labels/a.csv", "label"),
        ("incoming/a.txt", None),
        ("incoming/", None),
        ("results/a/results.csv", None),
        ("other/incoming/a.csv", None),
    ],
)
def test_the_key_says_what_a_file_asks_for(key: str, kind: str | None) -> None:
    assert jobs.kind_of(key) == kind
