"""The name of what a benchmark keeps: it changes with the code that makes it, so that nothing old is measured."""

import hashlib
from pathlib import Path

import retrue


def recipe(benchmark: Path) -> str:
    """Twelve hex digits of the training code and of a benchmark's own file."""
    code = [*sorted(Path(retrue.__file__).parent.rglob("training/*.py")), benchmark]
    return hashlib.sha256(b"".join(file.read_bytes() for file in code)).hexdigest()[:12]
