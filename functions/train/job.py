"""The training program with SageMaker's contract: folders in, a sealed model folder out.

    input/config/hyperparameters.json   retrue.training.finetune.Settings by name; every value is a string
    input/data/dataset/                 a prepared dataset
    input/data/encoder/                 the encoder to start from
    model/                              the sealed model folder
    output/failure                      the reason, when it ends with exit code 1

They lie under /opt/ml, or under RETRUE_ML_ROOT where another program plays SageMaker. Lines such as "progress 0.42
epoch 1 of 3" on stdout say how far it is.
"""

import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType, TracebackType

from retrue.errors import RetrueError
from retrue.records import iso
from retrue.training import export, finetune

TRAINING_SHARE = 0.8  # of the progress; the rest is the export


def run(root: Path) -> None:
    """Train and export; progress goes to stdout."""
    data = root / "input/data"
    chosen = finetune.chosen(json.loads((root / "input/config/hyperparameters.json").read_text()))
    said = -1.0

    def tell(share: float, message: str) -> None:
        nonlocal said
        if share - said >= 0.01 or share >= 1:
            said = share
            print(f"progress {share:.2f} {message}", flush=True)  # noqa: T201

    with tempfile.TemporaryDirectory(dir=root) as scratch:
        checkpoint, made = Path(scratch, "checkpoint"), Path(scratch, "model")
        result = finetune.finetune(
            data / "encoder", data / "dataset", chosen, checkpoint,
            lambda share, text: tell(TRAINING_SHARE * share, text),
        )  # fmt: skip
        export.export(
            checkpoint, data / "dataset", result, made, created=iso(round(time.time() * 1000)),
            progress=lambda share, text: tell(TRAINING_SHARE + (1 - TRAINING_SHARE) * share, text),
        )  # fmt: skip
        # Whoever looks at model/ finds nothing, or a whole model.
        shutil.copytree(made, root / "model", dirs_exist_ok=True)


def main() -> None:
    """Run under RETRUE_ML_ROOT; any error leaves its reason in output/failure and ends with exit code 1."""
    root = Path(os.environ.get("RETRUE_ML_ROOT", "/opt/ml"))

    def explain(reason: str) -> None:
        (root / "output").mkdir(exist_ok=True)
        (root / "output/failure").write_text(reason)

    def fail(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        explain(str(error) if isinstance(error, RetrueError) else f"{kind.__name__}: {error}")
        sys.__excepthook__(kind, error, trace)

    def stop(number: int, frame: FrameType | None) -> None:
        explain("the training was stopped from outside (SIGTERM) before it was done")
        os._exit(1)  # an exception would be lost where Python calls this inside a destructor

    sys.excepthook = fail
    signal.signal(signal.SIGTERM, stop)
    logging.basicConfig(format="%(levelname)s %(name)s %(message)s")
    logging.getLogger("retrue").setLevel(logging.INFO)
    run(root)


if __name__ == "__main__":
    main()
