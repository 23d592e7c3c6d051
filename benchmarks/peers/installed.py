"""The megabytes of installed packages and all that they ask for: installed.py NAME… [--without NAME…].

Byte code is left out.
"""

import re
import sys
from importlib.metadata import PackageNotFoundError, distribution

from packaging.requirements import Requirement


def main() -> None:
    given = [plain(name) for name in sys.argv[1:] if name != "--without"]
    wanted = given[: sys.argv.index("--without") - 1] if "--without" in sys.argv else given
    found: dict[str, int] = dict.fromkeys(given[len(wanted) :], 0)
    while wanted:
        name = wanted.pop()
        if name in found:
            continue
        try:
            package = distribution(name)
        except PackageNotFoundError:
            continue  # asked for in words, and served without
        paths = [file.locate() for file in package.files or () if "__pycache__" not in file.parts]
        found[name] = sum(path.stat().st_size for path in paths if path.is_file())
        needs = [Requirement(line) for line in package.requires or ()]
        wanted += [plain(need.name) for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    sys.stdout.write(f"{sum(found.values()) / 1e6}\n")


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    main()
