"""What the images of the functions hold."""

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

PROJECT = Path(__file__).resolve().parents[2]
NAMES = ["predict", "batch", "monitor", "train"]
# MB as the engine counts them, without the base image: a tenth more than was measured (docs/images.md).
LIMITS = {"predict": 141, "batch": 128, "monitor": 203, "train": 442}
ENTRIES = {"predict": ["python", "/var/task/start.py"]}
OF_THE_BASE = {"pip", "setuptools", "wheel"}
REPORT = PROJECT / "dist/images"


def locked(name: str) -> dict[str, str]:
    """The packages that the lock file gives Python 3.12 on Linux, with their versions."""
    text = (PROJECT / f"functions/{name}/requirements.txt").read_text()
    found = {}
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        wanted = Requirement(line.partition(" --hash")[0])
        machine = {"python_version": "3.12", "python_full_version": "3.12.0"}
        if wanted.marker is None or wanted.marker.evaluate(machine):
            found[wanted.name] = str(wanted.specifier).removeprefix("==")
    return found


@pytest.mark.parametrize("name", NAMES)
def test_an_image_has_the_structure_that_is_written_down(
    name: str, image: Callable[[str], str], tool: Callable[[str], str], docker_host: dict[str, str]
) -> None:
    words = [tool("container-structure-test"), "test", "--image", image(name)]
    words += ["--config", PROJECT / "tests/images/structure.yaml"]
    done = subprocess.run(words, env=docker_host, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Passes:      5" in done.stdout, done.stdout


@pytest.mark.parametrize("name", NAMES)
def test_an_image_starts_what_its_dockerfile_says(name: str, image: Callable[[str], str], engine: Any) -> None:
    (found,) = json.loads(engine.ask("image", "inspect", image(name)))
    assert found["Config"]["Entrypoint"] == ENTRIES.get(name, ["python", "-m", "awslambdaric"])


@pytest.mark.parametrize("name", NAMES)
def test_a_bill_of_materials_names_the_lock_s_packages_and_no_others(
    name: str, image: Callable[[str], str], tool: Callable[[str], str], engine: Any, tmp_path: Path
) -> None:
    own, archive, bill = image(name), tmp_path / "image.tar", REPORT / f"{name}.cdx.json"
    REPORT.mkdir(parents=True, exist_ok=True)
    engine.ask("save", "--output", str(archive), own)
    words = [tool("syft"), "scan", f"docker-archive:{archive}", "--output", f"cyclonedx-json={bill}"]
    environ = engine.environ | {"SYFT_CHECK_FOR_APP_UPDATE": "false"}
    subprocess.run(words, env=environ, capture_output=True, timeout=300, check=True)
    components = json.loads(bill.read_text())["components"]
    packages = {c["name"]: c["version"] for c in components if c.get("purl", "").startswith("pkg:pypi/")}
    named = {re.sub(r"[-_.]+", "-", key).lower(): value for key, value in packages.items()}
    assert {key: value for key, value in named.items() if key not in OF_THE_BASE} == locked(name)


@pytest.mark.parametrize("name", NAMES)
def test_an_image_stays_small(
    name: str, image: Callable[[str], str], engine: Any, images: Any, report: dict[str, dict[str, str]]
) -> None:
    own, base = layers(engine, image(name)), layers(engine, images.base_image(os.environ)[0])
    added = own[len(base) :]
    packages = sum(size for size, text in added if "COPY" in text and text.rstrip().endswith("/packages"))
    total = sum(size for size, _ in added)
    report[f"image {name}"] = {
        "base": f"{sum(size for size, _ in base):.0f} MB",
        "packages": f"{packages:.0f} MB",
        "the rest": f"{total - packages:.1f} MB",
    }
    assert 0 < total < LIMITS[name]


def layers(engine: Any, name: str) -> list[tuple[float, str]]:
    """Size in MB and instruction of each layer, the base's first."""
    told = engine.ask("history", "--no-trunc", "--format", "{{.Size}}\t{{.CreatedBy}}", name)
    found = []
    for line in told.strip().splitlines():
        size, _, text = line.partition("\t")
        match = re.fullmatch(r"([\d.e+]+) ?([kMG]?)B", size)
        assert match is not None, size
        found.append((float(match[1]) * {"": 1e-6, "k": 1e-3, "M": 1, "G": 1e3}[match[2]], text))
    return found[::-1]
