"""The lake: one S3 bucket that holds everything retrue knows. This module alone knows S3 and the names of keys.

incoming/*.csv[.gz]                     dropped by users: texts to classify
labels/*.csv[.gz]                       dropped by users: what the truth was
jobs/<job>.json                         one Job record: progress and outcome
results/<job>/results.csv, rejects.csv, ids.csv.gz, manifest.json
capture/date=…/hour=…/<ms>-<id>.jsonl.gz    new Prediction records; <ms> is the time inside their ids
feedback/date=…/hour=…/<ms>-<id>.jsonl.gz   new Label records, by the time they arrived
predictions/date=…/hour=…/<first ms>-<last ms>-<hash>.jsonl.gz, labelled/…  the same records, batched by the monitor
parts/<job>/…                           a CSV that is cut into parts, and what came of each
parts/map/…                             what the workflow's Map over such parts answered
datasets/<id>/…, datasets/current       prepared datasets, and the id of the base set in use
encoders/<name>/…                       base encoders that training starts from
models/<id>/…                           immutable model folders
runs/<job>/…                            what one training job made: progress.json, output/model.tar.gz
runs/<run>/…                            checkpoints of a retraining; of a search search.json and trials/
reports/<time>.json, .html, reports/latest…  what the monitor saw
reports/state.json, reports/told.json       what its checks found together, and when it asked for what
ledger/<ms>.json                        what served when, and why
mlflow/…                                artefacts of MLflow's runs, where it keeps the runs themselves in a database
"""

import gzip
import hashlib
import json
import re
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from heapq import heapify, heappop, heappush
from itertools import groupby
from pathlib import Path
from typing import IO, Any, Generic, TypeVar

import boto3
from botocore.exceptions import ClientError

from retrue.errors import NotFound
from retrue.records import Job, Label, LedgerEntry, Prediction, from_iso, id_ms

INCOMING, LABELS, JOBS, RESULTS = "incoming/", "labels/", "jobs/", "results/"
PARTS = "parts/"
CAPTURE, FEEDBACK, PREDICTIONS, LABELLED = "capture/", "feedback/", "predictions/", "labelled/"
DATASETS, ENCODERS = "datasets/", "encoders/"
MODELS, RUNS, REPORTS, LEDGER, MLFLOW = "models/", "runs/", "reports/", "ledger/", "mlflow/"
CURRENT_DATASET = "datasets/current"
TURN = "runs/turn.json"
LATEST_REPORT, LATEST_PAGE = "reports/latest.json", "reports/latest.html"
MISSING = {"NoSuchKey", "404", "NotFound"}
TAKEN = {"PreconditionFailed", "ConditionalRequestConflict"}
ID = re.compile(rb'"id":"([0-9a-f-]{36})"')  # in the line of a prediction, where quotes inside a text are escaped
AT_ONCE = 8  # objects fetched side by side
MOST_DELETED = 1_000  # keys in one request, as S3 has it

T = TypeVar("T")


def split_uri(uri: str) -> tuple[str, str]:
    """Bucket and key of s3://bucket/key."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def hour_prefix(root: str, ms: int) -> str:
    """The partition of a time, such as capture/date=2026-11-22/hour=09/."""
    return root + datetime.fromtimestamp(ms / 1000, UTC).strftime("date=%Y-%m-%d/hour=%H/")


def stamp(ms: int) -> str:
    """Milliseconds as 12 hex digits: the first part of a UUIDv7 and of the key that holds its record."""
    return f"{ms:012x}"


def span(key: str) -> tuple[int, int]:
    """The times in milliseconds of the first and the last record of an object, which its key tells."""
    first, *more, _ = key.rpartition("/")[2].split("-")
    return int(first, 16), int(more[0] if more else first, 16)


def last(key: str) -> int:
    """The time of the last record of an object."""
    return span(key)[1]


class Lake:
    """Reads and writes one bucket."""

    def __init__(self, bucket: str, client: Any = None) -> None:
        self.bucket = bucket
        self.s3 = client if client is not None else boto3.client("s3")

    # objects
    def uri(self, key: str) -> str:
        return f"s3://{self.bucket}/{key}"

    def put(self, key: str, body: bytes, content_type: str = "application/json") -> None:
        self.s3.put_object(Bucket=self.bucket, Key=key, Body=body, ContentType=content_type)

    def put_new(self, key: str, body: bytes, content_type: str = "application/json") -> bool:
        """Write an object only where there is none; False where somebody was first."""
        try:
            self.s3.put_object(Bucket=self.bucket, Key=key, Body=body, ContentType=content_type, IfNoneMatch="*")
        except ClientError as error:
            if error.response["Error"]["Code"] in TAKEN:
                return False
            raise
        return True

    def get(self, key: str) -> bytes:
        body: bytes = self._get(key)["Body"].read()
        return body

    def open(self, key: str) -> IO[bytes]:
        """The object as a stream, for files that may be larger than memory."""
        stream: IO[bytes] = self._get(key)["Body"]
        return stream

    def _get(self, key: str) -> Any:
        try:
            return self.s3.get_object(Bucket=self.bucket, Key=key)
        except ClientError as error:
            if error.response["Error"]["Code"] in MISSING:
                raise NotFound(f"there is no {self.uri(key)}") from None
            raise

    def keys(self, prefix: str, after: str = "") -> Iterator[str]:
        """Keys under a prefix in order, beginning behind `after`."""
        pages = self.s3.get_paginator("list_objects_v2")
        for page in pages.paginate(Bucket=self.bucket, Prefix=prefix, **({"StartAfter": after} if after else {})):
            for item in page.get("Contents", ()):
                yield item["Key"]

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects, those that have gone already included."""
        for first in range(0, len(keys), MOST_DELETED):
            objects = [{"Key": key} for key in keys[first : first + MOST_DELETED]]
            answer = self.s3.delete_objects(Bucket=self.bucket, Delete={"Objects": objects, "Quiet": True})
            if errors := answer.get("Errors"):  # S3 says so inside a good answer
                raise ClientError({"Error": errors[0]}, "DeleteObjects")

    def upload(self, path: Path, key: str) -> None:
        self.s3.upload_file(str(path), self.bucket, key)

    def download(self, key: str, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.s3.download_file(self.bucket, key, str(path))

    def upload_folder(self, folder: Path, prefix: str) -> None:
        """Every file under a folder, in parallel."""
        files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda p: self.upload(p, prefix + p.relative_to(folder).as_posix()), files))

    def download_folder(self, prefix: str, folder: Path, only: Collection[str] | None = None) -> list[Path]:
        """Every object under a prefix, or those named in `only`, in parallel; the paths written."""
        keys = [key for key in self.keys(prefix) if only is None or key.removeprefix(prefix) in only]
        if not keys:
            raise NotFound(f"there is nothing under {self.uri(prefix)}")
        paths = [folder / key.removeprefix(prefix) for key in keys]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(self.download, keys, paths))
        return paths

    # predictions and labels
    def write_predictions(self, predictions: list[Prediction]) -> str:
        """One object for predictions that share the time in their ids; the same ids give the same key."""
        return self._write_records(CAPTURE, id_ms(predictions[0].id) or 0, predictions[0].id, predictions)

    def write_labels(self, labels: list[Label]) -> str:
        return self._write_records(FEEDBACK, from_iso(labels[0].time), labels[0].id, labels)

    def write_batch(self, root: str, low: int, high: int, lines: Sequence[bytes]) -> str:
        """One object for records of one hour, between two times; the same lines give the same key."""
        body = b"".join(line + b"\n" for line in lines)
        name = f"{stamp(low)}-{stamp(high)}-{hashlib.sha256(body).hexdigest()[:12]}.jsonl.gz"
        key = hour_prefix(root, low) + name
        self.put(key, gzip.compress(body, 6, mtime=0), "application/gzip")
        return key

    def lines(self, keys: Iterable[str]) -> Iterator[tuple[str, list[bytes]]]:
        """Objects of records as (key, lines), in the order of the keys, several fetched at a time.

        Those that have gone meanwhile are left out: the monitor has batched them.
        """
        waiting: deque[tuple[str, Future[list[bytes] | None]]] = deque()
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for key in keys:
                waiting.append((key, pool.submit(self._lines_if_there, key)))
                if len(waiting) == 2 * AT_ONCE:
                    yield from _there(*waiting.popleft())
            while waiting:
                yield from _there(*waiting.popleft())

    def find_prediction(self, id: str) -> Prediction:
        """The prediction with this id; NotFound where there is none."""
        for found in self.find_predictions([id]):
            for prediction in found:
                return prediction
        raise NotFound("there is no prediction with this id")

    def find_predictions(self, ids: Iterable[str]) -> Iterator[list[Prediction]]:
        """Those of these predictions that exist, in the order of their ids, some at a time; each object is read once.

        First in batched objects, then in what is not batched yet, and last once more in those: what the monitor moves
        meanwhile is written there before it is deleted here.
        """
        wanted = sorted(id for id in ids if id_ms(id) is not None)
        for hour, group in groupby(wanted, lambda one: hour_prefix(PREDICTIONS, id_ms(one) or 0)):
            asked = set(group)

            def of_these(lines: list[bytes], asked: set[str] = asked) -> dict[str, Prediction]:
                # Of thousands of lines one is wanted, and to parse them all would take most of the time.
                mine = (line for line in lines if (id := ID.search(line)) and id[1].decode() in asked)
                return {prediction.id: prediction for prediction in map(Prediction.from_json, mine)}

            batched = Batched(self, hour, of_these)
            times = [(ms, set(ids)) for ms, ids in groupby(sorted(asked), id_ms) if ms is not None]
            for first in range(0, len(times), AT_ONCE):
                portion = dict(times[first : first + AT_ONCE])
                missing = set().union(*portion.values())
                found: dict[str, Prediction] = {}
                for look in (batched.at, self._new_predictions, batched.again):
                    places = look([ms for ms, ids in portion.items() if ids & missing]) if missing else []
                    found |= {id: place[id] for place in places for id in missing & place.keys()}
                    missing -= found.keys()
                yield [found[id] for id in sorted(found)]

    def predictions_since(self, since: int) -> Iterator[Prediction]:
        """Predictions from a time in milliseconds on, each once, whether they are batched yet or not.

        The queue is read first: what the monitor moves meanwhile is found among what it has written.
        """
        seen: set[str] = set()
        new = self.keys(CAPTURE, after=hour_prefix(CAPTURE, since) + stamp(since))
        batched = (key for key in self.keys(PREDICTIONS, after=hour_prefix(PREDICTIONS, since)) if last(key) >= since)
        for keys in (new, batched):
            for _, lines in self.lines(keys):
                for prediction in map(Prediction.from_json, lines):
                    if prediction.id not in seen and (id_ms(prediction.id) or 0) >= since:
                        seen.add(prediction.id)
                        yield prediction

    def newest_labels(self, now_ms: int, hours: int) -> Iterator[Label]:
        """Labels that arrived in the last hours, newest first; one that is being batched meanwhile may come twice.

        There are few objects of labels, and they are asked for over months: one listing of all is cheaper than one for
        each hour. What is not batched yet is read before the listing of what is, so that nothing moves in between.
        """
        since = now_ms - hours * 3_600_000
        new = [
            label
            for _, lines in self.lines(self.keys(FEEDBACK, after=hour_prefix(FEEDBACK, since)))
            for label in map(Label.from_json, lines)
        ]
        heap = [(-from_iso(label.time), -number, label) for number, label in enumerate(new, 1)]
        heapify(heap)
        batches = sorted(self.keys(LABELLED, after=hour_prefix(LABELLED, since)), key=last, reverse=True)
        number = 0
        for key, lines in self.lines(batches):
            # An object is read when all labels that are newer than its last one have been given.
            while heap and -heap[0][0] > last(key):
                yield heappop(heap)[2]
            for label in map(Label.from_json, lines):
                number += 1
                heappush(heap, (-from_iso(label.time), number, label))
        while heap:
            yield heappop(heap)[2]

    # jobs, ledger
    def write_job(self, job: Job) -> None:
        self.put(f"{JOBS}{job.id}.json", job.to_json().encode())

    def read_job(self, id: str) -> Job:
        if not id.isalnum():
            raise NotFound("there is no job with this id")
        return Job.from_json(self.get(f"{JOBS}{id}.json"))

    def job_of(self, key: str) -> Job | None:
        """The job that the object at a key started, looked for among those written since; None where none has begun."""
        dropped = self.s3.head_object(Bucket=self.bucket, Key=key)["LastModified"]
        for page in self.s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=JOBS):
            for item in page.get("Contents", ()):
                if item["LastModified"] >= dropped:
                    job = Job.from_json(self.get(item["Key"]))
                    if job.input == self.uri(key):
                        return job
        return None

    def append_ledger(self, entry: LedgerEntry) -> None:
        ms = from_iso(entry.time)
        while not self.put_new(f"{LEDGER}{stamp(ms)}.json", entry.to_json().encode()):
            ms += 1

    def ledger(self) -> list[LedgerEntry]:
        """Every entry, oldest first."""
        return [LedgerEntry.from_json(self.get(key)) for key in self.keys(LEDGER)]

    def _write_records(self, root: str, ms: int, id: str, records: Iterable[Prediction | Label]) -> str:
        key = f"{hour_prefix(root, ms)}{stamp(ms)}-{id[-12:]}.jsonl.gz"
        body = "".join(record.to_json() + "\n" for record in records).encode()
        self.put(key, gzip.compress(body, 6, mtime=0), "application/gzip")
        return key

    def _lines(self, key: str) -> list[bytes]:
        return gzip.decompress(self.get(key)).splitlines()

    def _lines_if_there(self, key: str) -> list[bytes] | None:
        try:
            return self._lines(key)
        except NotFound:
            return None

    def _new_predictions(self, times: Sequence[int]) -> list[dict[str, Prediction]]:
        """Predictions of these times that are not batched yet, by id."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            keys = pool.map(lambda ms: list(self.keys(hour_prefix(CAPTURE, ms) + stamp(ms))), times)
            found = [
                Prediction.from_json(line)
                for _, lines in self.lines(k for some in keys for k in some)
                for line in lines
            ]
        return [{prediction.id: prediction for prediction in found}]

    # small JSON documents
    def put_json(self, key: str, value: Any) -> None:
        self.put(key, _document(value))

    def get_json(self, key: str) -> Any:
        return json.loads(self.get(key))

    def put_json_if(self, key: str, value: Any, version: str | None) -> bool:
        """Write a document where `version` is still its version, or None and there is none; False where it is not."""
        if version is None:
            return self.put_new(key, _document(value))
        condition = {"ContentType": "application/json", "IfMatch": version}
        try:
            self.s3.put_object(Bucket=self.bucket, Key=key, Body=_document(value), **condition)
        except ClientError as error:
            if error.response["Error"]["Code"] in TAKEN | MISSING:
                return False
            raise
        return True

    def get_versioned(self, key: str) -> tuple[Any, str | None]:
        """A document and its version; (None, None) where there is none."""
        try:
            answer = self._get(key)
        except NotFound:
            return None, None
        return json.loads(answer["Body"].read()), answer["ETag"]


def _document(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=1).encode()


def _there(key: str, future: Future[list[bytes] | None]) -> list[tuple[str, list[bytes]]]:
    found = future.result()
    return [] if found is None else [(key, found)]


class Batched(Generic[T]):
    """The batched objects of one hour, and what `make` makes of the lines of those that reach over certain times.

    Each object is read once, as long as later calls ask for later times.
    """

    def __init__(self, lake: Lake, hour: str, make: Callable[[list[bytes]], T]) -> None:
        self.lake, self.hour, self.make = lake, hour, make
        self.held: dict[str, T] = {}
        self._list()

    def at(self, times: Sequence[int]) -> list[T]:
        """What is made of the objects whose first and last times lie around one of these."""
        near = [key for key, (low, high) in self.spans.items() if any(low <= ms <= high for ms in times)]
        self.held |= {key: self.make(lines) for key, lines in self.lake.lines(k for k in near if k not in self.held)}
        answer = [self.held[key] for key in near if key in self.held]
        self.held = {key: made for key, made in self.held.items() if last(key) >= times[0]}
        return answer

    def again(self, times: Sequence[int]) -> list[T]:
        """As `at`, with the objects that have come meanwhile."""
        self._list()
        return self.at(times)

    def _list(self) -> None:
        self.spans = {key: span(key) for key in self.lake.keys(self.hour)}
