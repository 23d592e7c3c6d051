"""The training program with SageMaker's contract: folders in, a sealed model folder out.

    input/config/hyperparameters.json   retrue.training.settings.Settings by name; every value is a string
    input/config/resourceconfig.json    the hosts, where SageMaker starts the program on several
    input/data/dataset/                 a prepared dataset
    input/data/encoder/                 the encoder to start from
    checkpoints/                        the state of a training that was stopped, to go on from
    model/                              the sealed model folder; trial.json alone where the training only pauses
    output/failure                      the reason, when it ends with exit code 1

They lie under /opt/ml, or under RETRUE_ML_ROOT where another program plays SageMaker. With several GPUs or hosts it
starts itself once more for each GPU, through torchrun. Lines such as "progress 0.42 epoch 1 of 3" on stdout say how far
it is.
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
from types import TracebackType

import torch

from retrue.artifact import TRIAL
from retrue.errors import Interrupted, RetrueError
from retrue.records import iso
from retrue.training import cluster, export, finetune, settings

TRAINING_SHARE = 0.8  # of the progress; the rest is the export


class Job:
    """One run of the program; `stopped` becomes true with SIGTERM, or with SIGINT where a person ends it."""

    def __init__(self, root: Path, leads: bool) -> None:
        self.root, self.leads = root, leads
        self.stopped = False
        self.said = -1.0

    def run(self) -> None:
        """Train and export; progress goes to stdout."""
        data = self.root / "input/data"
        chosen = settings.chosen(json.loads((self.root / "input/config/hyperparameters.json").read_text()))
        with tempfile.TemporaryDirectory(dir=self.root) as scratch:
            checkpoint, made = Path(scratch, "checkpoint"), Path(scratch, "model")
            result = finetune.finetune(
                data / "encoder", data / "dataset", chosen, checkpoint,
                lambda share, text: self.tell(TRAINING_SHARE * share, text),
                checkpoints=self.root / "checkpoints", cache=self.root / "tokens", stop=lambda: self.stopped,
            )  # fmt: skip
            if not self.leads:
                return
            if result.paused:
                made.mkdir()
                (made / TRIAL).write_text(result.to_json())
                self.tell(1.0, f"paused after step {result.steps}")
            else:
                export.export(
                    checkpoint, data / "dataset", result, made, created=iso(round(time.time() * 1000)),
                    progress=lambda share, text: self.tell(TRAINING_SHARE + (1 - TRAINING_SHARE) * share, text),
                )  # fmt: skip
            # Whoever looks at model/ finds nothing, or a whole model.
            shutil.copytree(made, self.root / "model", dirs_exist_ok=True)

    def tell(self, share: float, message: str) -> None:
        """Say how far it is, and end the export where the training has ended and its state is kept."""
        if self.leads and (share - self.said >= 0.01 or share >= 1):
            self.said = share
            print(f"progress {share:.2f} {message}", flush=True)  # noqa: T201
        if self.stopped and share > TRAINING_SHARE:
            raise Interrupted("the training was stopped from outside during the export")

    def fail(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        """Leave the reason; of several processes that of the first to fail, which the others only follow."""
        (self.root / "output").mkdir(exist_ok=True)
        reason = str(error) if isinstance(error, RetrueError) else f"{kind.__name__}: {error}"
        try:
            with (self.root / "output/failure").open("x") as file:
                file.write(reason)
        except FileExistsError:
            logging.getLogger("retrue").warning("another process has failed before")
        sys.__excepthook__(kind, error, trace)


def main() -> None:
    """Run under RETRUE_ML_ROOT; any error leaves its reason in output/failure and ends with exit code 1."""
    root = Path(os.environ.get("RETRUE_ML_ROOT", "/opt/ml"))
    started = "RANK" in os.environ  # by torchrun
    job = Job(root, leads=os.environ.get("RANK", "0") == "0")
    sys.excepthook = job.fail
    # An exception would be lost where Python calls the handler inside a destructor: the loop looks at this instead.
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: setattr(job, "stopped", True))
    logging.basicConfig(format="%(levelname)s %(name)s %(message)s")
    logging.getLogger("retrue").setLevel(logging.INFO)
    layout = cluster.layout(root, os.environ, torch.cuda.device_count())
    if not started:
        (root / "output/failure").unlink(missing_ok=True)
        if layout.nodes * layout.processes > 1:
            os.execv(sys.executable, layout.command(Path(__file__).resolve()))  # noqa: S606 - the same interpreter
    job.run()


if __name__ == "__main__":
    main()
