"""Where the local stack lies on this machine, and what runs of it."""

import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrue.stack import Session

ENVIRONMENT = "local"
REGION = "us-east-1"
# The local cloud takes this pair for the owner of the account; it is worth nothing anywhere else.
ACCESS_KEY = SECRET_KEY = "test"
STACK = f"retrue-{ENVIRONMENT}"


@dataclass(frozen=True)
class Home:
    """A folder, by default .retrue beside the project, that holds all state of one local stack."""

    root: Path

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def encoders(self) -> Path:
        return self.root / "encoders"

    @property
    def mlflow(self) -> str:
        return f"sqlite:///{self.root / 'mlflow.db'}"

    @property
    def endpoint(self) -> str | None:
        """Where the local cloud answers, or None where it does not run."""
        return self.read("supervisor")["endpoint_url"] if self.supervisor() else None

    def read(self, name: str) -> dict[str, Any]:
        """What was noted under a name ("supervisor", "stack"), or an empty dictionary."""
        path = self.root / f"{name}.json"
        return json.loads(path.read_text()) if path.is_file() else {}

    def write(self, name: str, values: dict[str, Any]) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        draft = self.root / f"{name}.json.new"
        draft.write_text(json.dumps(values, indent=1))
        draft.replace(self.root / f"{name}.json")

    def supervisor(self) -> int | None:
        """The process id of the running supervisor, or None."""
        pid = self.read("supervisor").get("pid")
        return pid if pid and is_supervisor(pid, self.root) else None


def is_supervisor(pid: int, root: Path) -> bool:
    """Whether a process id belongs to this stack's supervisor: ids are used again after a restart of the machine."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"retrue.local.supervisor" in words and str(root).encode() in words


def stop(home: Home, seconds: float = 30.0) -> bool:
    """End the supervisor, and with it everything it started; False where nothing ran."""
    pid = home.supervisor()
    if pid is None:
        return False
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + seconds
    while is_supervisor(pid, home.root):
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    return True


def session(endpoint: str, token: str | None = None) -> Session:
    """Clients for the local cloud."""
    return Session(endpoint, region=REGION, access_key=ACCESS_KEY, secret_key=SECRET_KEY, token=token)


def endpoint_environ(endpoint: str) -> dict[str, str]:
    """What any AWS SDK needs in its environment to talk to the local cloud."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_REGION": REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
