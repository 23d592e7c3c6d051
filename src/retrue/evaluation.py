"""Candidate and champion on the same rows: what a training left is checked, scored, and brought before the gate."""

import hashlib
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from retrue import dataset, gate, lake
from retrue.artifact import NONE
from retrue.classifier import Classifier
from retrue.dataset import Example
from retrue.errors import ModelRefused
from retrue.lake import Lake
from retrue.settings import Steps


def evaluate(
    store: Lake, settings: Steps, champion_uri: str, artifacts: str, name: str, feedback: dict[str, int]
) -> dict[str, Any]:
    """Unpack the candidate into its immutable folder, score it and the champion on the same rows, and judge.

    `feedback` is the snapshot's count of labelled texts that were used and left out; it becomes part of the evidence.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        candidate = unpack(store, artifacts, root)
        store.upload_folder(root / "candidate", f"{lake.MODELS}{candidate.model}/")
        store.download_folder(f"{lake.DATASETS}{name}/", root / name)
        rows = sample(dataset.read(root / name, "test"), settings.maximum_test_rows)
        models = [candidate]
        if champion_uri != NONE:
            _, prefix = lake.split_uri(champion_uri)
            store.download_folder(prefix, root / "champion")
            models.append(Classifier.open(root / "champion"))
        answers = [[model.score(row.text).label for row in rows] for model in models]
    verdict = gate.decide(
        [row.label for row in rows],
        answers[0],
        answers[1] if len(answers) > 1 else None,
        [row.source == "feedback" for row in rows],
        labels=sorted({label for model in models for label in model.card.labels} | {row.label for row in rows}),
    )
    return {
        "model": candidate.model,
        "promote": verdict.promote,
        "reason": verdict.reason,
        "evidence": {"rows": len(rows), "dataset": name, "feedback": feedback, **verdict.evidence},
    }


def unpack(store: Lake, artifacts: str, root: Path) -> Classifier:
    """The model in a training job's model.tar.gz, checked against its manifest."""
    bucket, key = lake.split_uri(artifacts)
    if bucket != store.bucket:
        raise ModelRefused("the training job wrote its model to another bucket: check its OutputDataConfig")
    store.download(key, root / "model.tar.gz")
    with tarfile.open(root / "model.tar.gz") as archive:
        archive.extractall(root / "candidate", filter="data")
    return Classifier.open(root / "candidate")


def sample(rows: list[Example], most: int) -> list[Example]:
    """Base and feedback rows, at most `most` of each, by the smallest hashes: the same rows every time."""

    def digest(row: Example) -> str:
        return hashlib.sha256(row.text.encode()).hexdigest()

    base = sorted((row for row in rows if row.source != "feedback"), key=digest)[:most]
    recent = sorted((row for row in rows if row.source == "feedback"), key=digest)[:most]
    return base + recent
