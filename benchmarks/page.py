"""Results in docs/benchmarks.md: each between two marks of its own, with the command and the machine that made it."""

import os
import platform
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs/benchmarks.md"
PACKAGES = ("torch", "transformers", "tokenizers", "onnxruntime", "numpy")


def put(name: str, text: str, page: Path) -> None:
    """Replace what stands between <!-- name --> and <!-- /name -->; ValueError where the page has no such marks."""
    opening, closing = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, found, rest = page.read_text("utf-8").partition(opening)
    _, ended, after = rest.partition(closing)
    if not found or not ended:
        raise ValueError(f"{page.name} lacks {opening} or {closing}: write both where the result shall stand")
    page.write_text(f"{before}{opening}\n{text.strip()}\n{closing}{after}", "utf-8")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def made_by() -> str:
    """The command that runs, and the machine and packages that it runs on."""
    # Where something lies on this machine tells nobody else anything.
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    command = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words])
    return f"```sh\n{command}\n```\n\n{machine()}."


def machine() -> str:
    """CPU, cores that may be used, graphics cards, and versions of the packages that matter."""
    import torch

    cores = len(os.sched_getaffinity(0))
    cards = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    parts = [_cpu(), f"{cores} cores", *cards, f"Python {platform.python_version()}", packages]
    return ", ".join(parts)


def _cpu() -> str:
    known = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.+)$", known.read_text(), re.MULTILINE) if known.is_file() else None
    return found[1].strip() if found else platform.processor() or platform.machine()
