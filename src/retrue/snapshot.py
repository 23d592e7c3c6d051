"""What a retraining learns from: the base set plus labelled feedback as one dataset, and the training job on it."""

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from retrue import dataset, lake
from retrue.dataset import Example
from retrue.errors import BadDataset, NotFound, WrongSetting
from retrue.lake import Lake
from retrue.records import Label
from retrue.search import TRAINING_SHARE
from retrue.settings import Steps
from retrue.wording import fold

VOLUME_GB = 50  # of a training machine: its dataset, encoder, checkpoints and model
TEST_SHARE = 0.25  # of labelled feedback: never trained on, always judged on


def snapshot(store: Lake, settings: Steps, run: str, request: dict[str, Any], now_ms: int) -> dict[str, Any]:
    """Write the base set plus labelled feedback as one dataset, and the training job that goes with it."""
    base = request.get("dataset") or current_dataset(store)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        store.download_folder(f"{lake.DATASETS}{base}/", root / base)
        manifest = dataset.read_manifest(root / base)
        found = {split: dataset.read(root / base, split) for split in dataset.SPLITS}
        feedback, left_out = labelled(store, manifest.labels, now_ms, settings.feedback_days)
        merged, replaced = joined(found, feedback)
        name = base
        if feedback:
            source = f"dataset {base} and {len(feedback)} labelled texts from production"
            path = dataset.write(
                root / "merged", merged, name=manifest.name, source=source, synthetic=manifest.synthetic,
                notice=manifest.notice, dropped={**left_out, "replaced": replaced},
            )  # fmt: skip
            name = path.name
            store.upload_folder(path, f"{lake.DATASETS}{name}/")
    # A training that ends itself in time leaves a model; one that is ended leaves none.
    minutes = round(settings.train_seconds * TRAINING_SHARE / 60, 2)
    chosen = {
        "encoder_name": settings.encoder,
        "minutes": minutes,
        **pairs(settings.train_settings),
        **request.get("settings", {}),
    }
    hyperparameters = {name: str(value) for name, value in chosen.items()}
    channels = {"dataset": f"{lake.DATASETS}{name}/", "encoder": f"{lake.ENCODERS}{chosen['encoder_name']}/"}
    # A spot instance is waited for, and taken up again, besides the time that the training takes.
    longest = settings.train_seconds + settings.train_wait_seconds
    waiting = {"MaxWaitTimeInSeconds": longest} if settings.train_spot else {}
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
        "CheckpointConfig": {"S3Uri": store.uri(f"{lake.RUNS}{run}/checkpoints/"), "LocalPath": "/opt/ml/checkpoints"},
        "ResourceConfig": {
            "InstanceType": settings.train_instance,
            "InstanceCount": settings.train_nodes,
            "VolumeSizeInGB": VOLUME_GB,
        },
        "EnableManagedSpotTraining": settings.train_spot,
        "StoppingCondition": {"MaxRuntimeInSeconds": settings.train_seconds, **waiting},
    }
    told = {"rows": len(feedback), "replaced": replaced, **left_out}
    return {"job": job, "backend": settings.train_backend, "dataset": name, "feedback": told}


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


def labelled(store: Lake, labels: Sequence[str], now_ms: int, days: int) -> tuple[list[Example], dict[str, int]]:
    """Texts that were kept and labelled, newest label first, and how many labels were left out, by reason.

    What was said last about a prediction counts. Left out are labels without a text ("without_text"), labels that the
    base set does not know ("unknown_labels"), older labels of the same wording ("duplicates"), and all labels of a
    wording about which several predictions were told different things ("conflicts").
    """
    newest: dict[str, Label] = {}
    for label in store.newest_labels(now_ms, days * 24):
        newest.setdefault(label.id, label)
    filled = {label.id: label.text for label in newest.values() if label.text and label.text.strip()}
    examples = [
        Example(text=filled[label.id], label=label.label, source="feedback", id=label.id)
        for label in newest.values()
        if label.id in filled and label.label in labels
    ]
    settled, dropped = dataset.settle(examples)
    left_out = {
        "without_text": len(newest) - len(filled),
        "unknown_labels": len(filled) - len(examples),
        **dropped,
    }
    return list(settled.values()), left_out


def joined(base: Mapping[str, Sequence[Example]], feedback: Sequence[Example]) -> tuple[dict[str, list[Example]], int]:
    """The splits of a base set with feedback in them, and how many base rows feedback of their wording replaced.

    A text of the base set stays in its split, since the champion must not be judged on what it was trained on, and in
    its group. Others go to test or train by their own hash.
    """
    told = {fold(example.text): example for example in feedback}
    splits: dict[str, list[Example]] = {split: [] for split in base}
    place: dict[str, tuple[str, str | None]] = {}
    replaced = 0
    for split, rows in base.items():
        for row in rows:
            wording = fold(row.text)
            if wording in told:
                place[wording] = split, row.group
                replaced += 1
            else:
                splits[split].append(row)
    for wording, example in told.items():
        split, group = place.get(wording, ("test" if is_test(example.text) else "train", None))
        splits[split].append(replace(example, group=group))
    return splits, replaced


def is_test(text: str) -> bool:
    """Whether a labelled text belongs to the rows that only judge: a fixed quarter, by the hash of its wording."""
    return int(hashlib.sha256(fold(text).encode()).hexdigest()[:8], 16) < TEST_SHARE * 16**8
