"""The steps of the retraining workflow, each a function from plain values to plain values (infra/retrain.asl.yaml)."""

import hashlib
import json
import math
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from retrue import artifact, dataset, gate, lake
from retrue.artifact import NONE
from retrue.classifier import Classifier
from retrue.dataset import Example
from retrue.errors import BadDataset, ModelRefused, NotFound, ReleaseRefused, StackError, WrongSetting
from retrue.lake import Lake
from retrue.records import LedgerEntry, iso
from retrue.release import Release
from retrue.settings import Steps

TEST_SHARE = 0.25  # of labelled feedback: never trained on, always judged on
TOLERANCE = 1e-3  # largest difference in a golden score between where it was made and where it is served


def begin(execution: str, oldest: str | None, request: dict[str, Any]) -> dict[str, Any]:
    """Whether this execution may go on, and the short name of its run (at most 63 characters of [a-z0-9-])."""
    run = "retrue-" + hashlib.sha256(execution.encode()).hexdigest()[:16]
    return {"alone": oldest in (None, execution), "run": run, "request": {"reason": "no reason given", **request}}


def snapshot(store: Lake, settings: Steps, run: str, request: dict[str, Any], now_ms: int) -> dict[str, Any]:
    """Write the base set plus labelled feedback as one dataset, and the training job that goes with it."""
    base = request.get("dataset") or current_dataset(store)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        store.download_folder(f"{lake.DATASETS}{base}/", root / base)
        manifest = dataset.read_manifest(root / base)
        found = {split: dataset.read(root / base, split) for split in dataset.SPLITS}
        feedback = labelled(store, manifest.labels, now_ms, settings.feedback_days)
        known = {row.text: split for split, rows in found.items() for row in rows}
        told: dict[str, list[Example]] = {split: [] for split in found}
        for example in feedback:
            # A text of the base set stays in its split: the champion must not be judged on what it was trained on.
            told[known.get(example.text) or ("test" if is_test(example.text) else "train")].append(example)
        name = base
        if feedback:
            source = f"dataset {base} and {len(feedback)} labelled texts from production"
            # In front, since of equal texts the first stays: what a person said last counts.
            merged = {split: told[split] + found[split] for split in found}
            path = dataset.write(
                root / "merged", merged, name=manifest.name, source=source,
                synthetic=manifest.synthetic, notice=manifest.notice,
            )  # fmt: skip
            name = path.name
            store.upload_folder(path, f"{lake.DATASETS}{name}/")
    chosen = {"encoder_name": settings.encoder, **pairs(settings.train_settings), **request.get("settings", {})}
    hyperparameters = {name: str(value) for name, value in chosen.items()}
    channels = {"dataset": f"{lake.DATASETS}{name}/", "encoder": f"{lake.ENCODERS}{settings.encoder}/"}
    job = {
        "TrainingJobName": run,
        "HyperParameters": hyperparameters,
        "InputDataConfig": [
            {
                "ChannelName": channel,
                "DataSource": {
                    "S3DataSource": {
                        "S3DataType": "S3Prefix",
                        "S3DataDistributionType": "FullyReplicated",
                        "S3Uri": store.uri(prefix),
                    }
                },
            }
            for channel, prefix in channels.items()
        ],
        "OutputDataConfig": {"S3OutputPath": store.uri(lake.RUNS)},
        "StoppingCondition": {"MaxRuntimeInSeconds": settings.train_seconds},
    }
    return {"job": job, "backend": settings.train_backend, "dataset": name}


def pairs(text: str) -> dict[str, str]:
    """The settings in a text such as epochs=2,max_tokens=384; WrongSetting where it is none."""
    found = [item.strip().partition("=") for item in text.split(",") if item.strip()]
    if any(not sign or not name for name, sign, _ in found):
        raise WrongSetting(f"TRAIN_SETTINGS is not like name=value,name=value: {text}")
    return {name.strip(): value.strip() for name, _, value in found}


def current_dataset(store: Lake) -> str:
    """The id of the base set in use; BadDataset where nobody has chosen one."""
    try:
        return store.get(lake.CURRENT_DATASET).decode().strip()
    except NotFound:
        raise BadDataset("no dataset is in use yet: run `retrue data … --use`") from None


def labelled(store: Lake, labels: Sequence[str], now_ms: int, days: int) -> list[Example]:
    """Texts that were kept and labelled, newest label first; labels that the base set does not know are left out."""
    known: set[str] = set()
    examples: list[Example] = []
    for label in store.newest_labels(now_ms, days * 24):
        if label.id in known:
            continue
        known.add(label.id)
        if label.text and label.label in labels:
            examples.append(Example(text=label.text, label=label.label, source="feedback", id=label.id))
    return examples


def is_test(text: str) -> bool:
    """Whether a labelled text belongs to the rows that only judge: a fixed quarter, by its own hash."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) < TEST_SHARE * 16**8


def evaluate(store: Lake, settings: Steps, champion_uri: str, artifacts: str, name: str) -> dict[str, Any]:
    """Unpack the candidate into its immutable folder, score it and the champion on the same rows, and judge."""
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
        "evidence": {"rows": len(rows), "dataset": name, **verdict.evidence},
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


def model_uri(store: Lake, model: str) -> str:
    """The URI of a model that is in the lake; NotFound where it is not."""
    if not model.isalnum() or next(store.keys(f"{lake.MODELS}{model}/{artifact.MANIFEST}"), None) is None:
        raise NotFound(f"there is no model {model!r} in the lake: `retrue ledger` lists those that served")
    return store.uri(f"{lake.MODELS}{model}/")


def publish(store: Lake, release: Release, model: str, run: str) -> dict[str, Any]:
    """A version of the serving function that carries the model."""
    return {"version": release.publish(model_uri(store, model), f"model {model}, run {run}")}


def validate(store: Lake, release: Release, model: str, version: str) -> dict[str, Any]:
    """Ask the new version the model's golden inputs; ReleaseRefused where it answers otherwise than at training."""
    golden = store.get_json(f"{lake.MODELS}{model}/{artifact.GOLDEN}")
    answer = release.ask(version, {"probe": [item["text"] for item in golden]})
    if answer["model"] != model:
        raise ReleaseRefused(f"version {version} serves model {answer['model']} where {model} was expected")
    differences = (
        abs(scores[label] - item["scores"][label])
        for item, scores in zip(golden, answer["scores"], strict=True)
        for label in item["scores"]
    )
    # A NaN is above no limit, so it would pass.
    worst = max(math.inf if math.isnan(difference) else difference for difference in differences)
    if worst > TOLERANCE:
        raise ReleaseRefused(f"version {version} differs from its model's golden scores by {worst:.4f}")
    return {"worst": worst}


def promote(
    store: Lake,
    release: Release,
    run: str,
    request: dict[str, Any],
    candidate: dict[str, Any],
    version: str,
    now_ms: int,
) -> LedgerEntry:
    """Move the alias and the pointer to the candidate's version, and write it down."""
    uri = model_uri(store, candidate["model"])
    previous = release.move(version, uri)
    entry = LedgerEntry(
        time=iso(now_ms),
        action="promoted",
        model=candidate["model"],
        version=version,
        previous_model=_model(release.model_of(previous)),
        previous_version=previous,
        reason=f"{request['reason']}: {candidate['reason']}",
        run=run,
        evidence=candidate.get("evidence"),
    )
    store.append_ledger(entry)
    return entry


def reject(
    store: Lake, release: Release, run: str, request: dict[str, Any], candidate: dict[str, Any], now_ms: int
) -> LedgerEntry:
    """Write down that the candidate was not good enough; nothing moves."""
    entry = LedgerEntry(
        time=iso(now_ms),
        action="rejected",
        model=candidate["model"],
        reason=f"{request['reason']}: {candidate['reason']}",
        previous_version=release.live_version(),
        run=run,
        evidence=candidate.get("evidence"),
    )
    store.append_ledger(entry)
    return entry


def fail(store: Lake, release: Release, execution: str, error: dict[str, Any], now_ms: int) -> LedgerEntry:
    """Write down that a run ended with an error; nothing moves."""
    entry = LedgerEntry(
        time=iso(now_ms),
        action="failed",
        model=None,
        reason=f"{error.get('Error', 'error')}: {_cause(error)}",
        previous_version=release.live_version(),
        run=begin(execution, None, {})["run"],
    )
    store.append_ledger(entry)
    return entry


def roll_back(store: Lake, release: Release, reason: str, now_ms: int, version: str | None = None) -> LedgerEntry:
    """Move the alias back to the version that served before, or to the one named, and write it down."""
    live = release.live_version()
    if version is None:
        version = _before(store.ledger(), live)
    if version == live:
        raise StackError(f"version {version} serves already")
    uri = release.model_of(version)
    if uri == NONE:
        raise StackError(f"version {version} carries no model: `retrue ledger` lists those that do")
    release.move(version, uri)
    entry = LedgerEntry(
        time=iso(now_ms),
        action="rolled-back",
        model=_model(uri),
        version=version,
        previous_model=_model(release.model_of(live)),
        previous_version=live,
        reason=reason,
    )
    store.append_ledger(entry)
    return entry


def _before(entries: list[LedgerEntry], live: str) -> str:
    """The version that served before the live one, leaving out those that were rolled away from since."""
    path: list[str] = []
    for entry in entries:
        if entry.version is None:
            continue  # nothing moved
        before = entry.previous_version
        path = _below(path, before)
        if entry.action == "promoted" and before and entry.previous_model:
            path.append(before)
        path = [*_below(path, entry.version), entry.version]
    path = _below(path, live)
    if not path:
        raise StackError("the ledger knows no version with a model that served before this one")
    return path[-1]


def _below(path: list[str], version: str | None) -> list[str]:
    return path[: path.index(version)] if version in path else path[:]


def _model(uri: str) -> str | None:
    return None if uri == NONE else uri.rstrip("/").rsplit("/", 1)[-1]


def _cause(error: dict[str, Any]) -> str:
    """The message of a Lambda error, which Step Functions hands on as JSON inside a text."""
    cause = str(error.get("Cause", ""))
    try:
        return str(json.loads(cause)["errorMessage"])
    except (ValueError, KeyError, TypeError):
        return cause[-2_000:]
