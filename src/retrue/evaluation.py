"""Candidate and champion on the same rows: what a training left is checked, scored, and brought before the gate."""

import hashlib
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from retrue import artifact, dataset, gate, lake
from retrue.artifact import MANIFEST, NONE, SERVED, SIGNATURE
from retrue.classifier import Classifier
from retrue.dataset import Example
from retrue.errors import ModelRefused
from retrue.gate import Rules, Showing
from retrue.lake import Lake
from retrue.records import Trigger
from retrue.settings import Steps
from retrue.signature import Signer

WARM = 5  # rows that each model answers before its time is taken
TOLD = 3  # reasons in the sentence for the ledger; the rest are in the list


def evaluate(
    store: Lake,
    settings: Steps,
    champion_uri: str,
    artifacts: str,
    name: str,
    trigger: Trigger,
    feedback: dict[str, int],
) -> dict[str, Any]:
    """Unpack the candidate into its immutable folder, score it and the champion on the same rows, and judge.

    `feedback` is the snapshot's count of labelled texts that were used and left out; it becomes part of the evidence.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        candidate = unpack(store, artifacts, root)
        store.upload_folder(root / "candidate", f"{lake.MODELS}{candidate.model}/")
        if settings.signing_key:
            signature = Signer(settings.signing_key).sign((root / "candidate" / MANIFEST).read_bytes())
            store.put(f"{lake.MODELS}{candidate.model}/{SIGNATURE}", signature, "application/octet-stream")
        store.download_folder(f"{lake.DATASETS}{name}/", root / name)
        rows = sample(dataset.read(root / name, "test"), settings.maximum_test_rows)
        models, sizes = [candidate], [artifact.size(root / "candidate")]
        if champion_uri != NONE:
            _, prefix = lake.split_uri(champion_uri)
            store.download_folder(prefix, root / "champion", SERVED)
            models.append(Classifier.open(root / "champion"))
            sizes.append(artifact.size(root / "champion"))
        shown = showings(models, sizes, rows)
    verdict = gate.judge(shown[0], shown[1] if len(shown) > 1 else None, rules(settings, trigger))
    more = len(verdict.reasons) - TOLD
    return {
        "model": candidate.model,
        "promote": verdict.promote,
        "reason": "; ".join(verdict.reasons[:TOLD]) + (f"; and {more} more" if more > 0 else ""),
        "reasons": verdict.reasons,
        "evidence": {"rows": len(rows), "dataset": name, "feedback": feedback, **verdict.evidence},
    }


def rules(settings: Steps, trigger: Trigger) -> Rules:
    """The gate's rules as this deployment sets them."""
    return Rules(
        trigger=trigger,
        metric=settings.gate_metric,
        alpha=settings.gate_alpha,
        margin=settings.gate_margin,
        slice_margin=settings.gate_slice_margin,
        latency_factor=settings.gate_latency_factor,
        size_factor=settings.gate_size_factor,
        floor_accuracy=settings.gate_floor_accuracy,
        floor_f1=settings.gate_floor_f1,
    )


def showings(models: Sequence[Classifier], sizes: Sequence[int], rows: Sequence[Example]) -> list[Showing]:
    """What each model answers to each row, one row after the other, and the CPU time that it takes.

    The models take turns, also in who is first, so that whatever else the machine does meets them alike. The time is
    the thread's own, in which a session of one thread does all its work.
    """
    labels = sorted({label for model in models for label in model.card.labels} | {row.label for row in rows})
    for row in rows[:WARM]:
        for model in models:
            model.score(row.text)
    seconds = [0.0] * len(models)
    scores = np.zeros((len(models), len(rows), len(labels)))
    tokens = np.zeros((len(models), len(rows)), dtype=np.int64)
    for number, row in enumerate(rows):
        for which in sorted(range(len(models)), reverse=number % 2 == 1):
            began = time.thread_time()
            answer = models[which].score(row.text)
            seconds[which] += time.thread_time() - began
            scores[which, number] = [answer.scores.get(label, 0.0) for label in labels]
            tokens[which, number] = answer.tokens
    return [
        Showing(
            labels=labels,
            truth=np.array([labels.index(row.label) for row in rows], dtype=np.int64),
            scores=scores[which],
            tokens=tokens[which],
            sources=[row.source for row in rows],
            recent=np.array([row.source == "feedback" for row in rows], dtype=bool),
            milliseconds=1000 * seconds[which] / len(rows),
            size=size,
        )
        for which, size in enumerate(sizes)
    ]


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
