"""The name of what a benchmark keeps: it changes with the code that may have made it, so that nothing old is asked."""

import hashlib
from pathlib import Path

from retrue.training import finetune


def recipe(benchmark: Path) -> str:
    """Twelve hex digits of retrue's code and of a benchmark's own file."""
    return hashlib.sha256(finetune.code().encode() + benchmark.read_bytes()).hexdigest()[:12]
