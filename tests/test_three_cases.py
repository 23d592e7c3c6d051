"""What a monitor must tell apart, on real texts: drift with loss, drift without loss, and loss without drift.

The model counts words. It cannot follow a review that was turned around in a few of them, which a human did with the
counterfactual ones; a transformer loses much less there.
"""

import json
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
from moto import mock_aws
from pyarrow import parquet

from retrue import artifact, drift, watch
from retrue.artifact import Card
from retrue.lake import Lake
from retrue.records import Prediction, iso, new_id
from retrue.report import Report
from retrue.settings import Monitor

HOUR, TEXTS, CHECKS = 3_600_000, 200, 3
START = time.time_ns() // 1_000_000 - 5 * HOUR
BUCKET, LABELS = "retrue-test", ["negative", "positive"]
SETTINGS = Monitor(bucket=BUCKET, environment="test", model_parameter="/p", backstop_days=0)

Read = Callable[[list[str]], tuple[Any, ...]]


def sample(path: Path, rows: int, **only: Any) -> tuple[list[str], list[int]]:
    """Texts and the numbers of their labels, drawn by lot."""
    found = [row for row in parquet.read_table(path).to_pylist() if all(row[k] == v for k, v in only.items())]
    picked = random.Random(3).sample(found, rows)
    return [row["text"] for row in picked], [row["label"] for row in picked]


@pytest.fixture(scope="module")
def model(bag_of_words: Read, real_data: Path) -> dict[str, bytes]:
    """What the monitor reads of a model folder."""
    texts, labels = sample(real_data / "imdb_test.parquet", 3_000)
    read = bag_of_words(texts)
    accuracy = float(np.mean(read[-1].argmax(axis=1) == labels))
    card = Card(LABELS, iso(START), "words", "fp32", 256, 1.0, "d", {"test": {"accuracy": accuracy}}, {}, {})
    files = {name: name for name in (artifact.MODEL, artifact.WEIGHTS, artifact.TOKENIZER)}
    bound = artifact.bound(files, card.max_tokens, card.cut)
    return {
        artifact.CARD: card.to_json().encode(),
        artifact.MANIFEST: json.dumps({"files": files}).encode(),
        artifact.REFERENCE: drift.register(drift.columns(*read), made_by=bound).to_bytes(),
    }


@pytest.fixture
def lake(model: dict[str, bytes]) -> Iterator[Lake]:
    with mock_aws():
        boto3.client("s3").create_bucket(
            Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": "eu-central-1"}
        )
        lake = Lake(BUCKET)
        for name, body in model.items():
            lake.put(f"models/words/{name}", body)
        yield lake


def watched(lake: Lake, read: Read, texts: list[str], labels: list[int]) -> Report:
    """The report after an hourly check of each part of the texts, all of which somebody labels."""
    for check in range(CHECKS):
        now, part = START + (check + 1) * HOUR, slice(check * TEXTS, (check + 1) * TEXTS)
        answers = [
            Prediction(
                id=new_id(now - 60_000, k.to_bytes(10)), time=iso(now - 60_000), model="words",
                label=LABELS[int(scores.argmax())], score=float(scores.max()),
                scores=dict(zip(LABELS, scores.tolist(), strict=True)), tokens=int(tokens), truncated=False,
                projection=projection.tolist(), source="http", pieces=float(pieces), symbols=float(symbols),
            )
            for k, (projection, tokens, pieces, symbols, scores) in enumerate(zip(*read(texts[part]), strict=True))
        ]  # fmt: skip
        lake.write_predictions(answers)
        truths = [LABELS[number] for number in labels[part]]
        lake.write_labels(
            [one.truth(label, iso(now - 1_000), "http") for one, label in zip(answers, truths, strict=True)]
        )
        report = watch.run(lake, lake.uri("models/words/"), SETTINGS, now, None)
    return report


@pytest.mark.parametrize(
    ("file", "only", "drifts", "loses"),
    [
        ("imdb_test.parquet", {}, False, False),
        ("drift/airline_tweets.parquet", {}, True, True),
        ("drift/yelp.parquet", {}, True, False),
        ("redistributable/imdb_counterfactual.parquet", {"variant": "revised"}, False, True),
    ],
)
def test_drift_and_loss_are_told_apart(
    lake: Lake, bag_of_words: Read, real_data: Path, file: str, only: dict[str, Any], drifts: bool, loses: bool
) -> None:
    report = watched(lake, bag_of_words, *sample(real_data / file, CHECKS * TEXTS, **only))
    seen = report["drift"], report["accuracy"], report["expected_accuracy"]
    assert (report["drift"]["fired"], report["accuracy"]["fired"]) == (drifts, loses), seen
