"""What a retraining learns from: the base set plus labelled feedback as one dataset, and the training job on it."""

import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from retrue import dataset, lake
from retrue.dataset import Example
from retrue.errors import BadDataset, NotFound, WrongSetting
from retrue.lake import Lake
from retrue.settings import Steps

TEST_SHARE = 0.25  # of labelled feedback: never trained on, always judged on


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
