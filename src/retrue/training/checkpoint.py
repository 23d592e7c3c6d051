"""What a stopped training needs to go on as if nothing had happened: one file, whole or not there."""

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import torch

from retrue.errors import TrainingFailed

FILE = "state.pt"


def fingerprint(**facts: Any) -> str:
    """A name for everything that decides the weights; a state with another name is of another training."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def save(folder: Path, name: str, state: dict[str, Any]) -> None:
    """Write the state of the training of this name, in place of the one before."""
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f".{FILE}.new"
    torch.save({"fingerprint": name, "state": state}, draft)
    draft.replace(folder / FILE)


def load(folder: Path, name: str) -> dict[str, Any] | None:
    """The state that `save` left, or None where there is none of this name; TrainingFailed where it is damaged."""
    path = folder / FILE
    if not path.is_file():
        return None
    damaged = f"the checkpoint {path} cannot be read: delete it to begin anew"
    try:
        # torch's own reader looks at no checksum, and goes on from whatever numbers it finds.
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                raise TrainingFailed(damaged)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        raise TrainingFailed(damaged) from error
    state: dict[str, Any] = found["state"]
    return state if found["fingerprint"] == name else None
