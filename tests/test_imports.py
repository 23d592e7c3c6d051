"""What each function loads, in an interpreter of its own, and which module may import which."""

import ast
import dataclasses
import importlib.metadata
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from retrue import settings

PROJECT = Path(__file__).resolve().parents[1]
FUNCTIONS = ["predict", "batch", "monitor", "train"]
EVERYWHERE = {"torch", "transformers", "optimum", "onnx", "onnxscript", "matplotlib", "jinja2", "pytest", "moto"}
FORBIDDEN = {
    "predict": EVERYWHERE | {"scipy", "sklearn", "mlflow", "uvicorn", "h11", "click"},
    "batch": EVERYWHERE | {"scipy", "sklearn", "mlflow", "pydantic"},
    "monitor": EVERYWHERE - {"jinja2"} | {"onnxruntime", "tokenizers", "mlflow", "pydantic"},
    # mlflow and scikit-learn take seconds to load, and only few of the steps need them.
    "train": EVERYWHERE | {"mlflow", "pyarrow", "sklearn"},
}
SHAPES = [settings.Predict, settings.Serve, settings.Batch, settings.Monitor, settings.Steps, settings.Release]
OWN_VARIABLES = {field.name.upper() for shape in SHAPES for field in dataclasses.fields(shape)}
# Which modules may know an outside thing; the command line and retrue.local meet botocore's errors only.
OWNERS = {
    "boto3": {"lake", "release", "signature", "workflow", "stack"},
    "onnxruntime": {"classifier", "training"},
    "tokenizers": {"classifier", "training"},
    "torch": {"training"},
    "transformers": {"training"},
    "matplotlib": {"training"},
    "jinja2": {"page", "training"},
    "mlflow": {"registry"},
    "aws_lambda_powertools": {"telemetry"},
    "pyarrow": {"sources"},
    "typer": {"cli"},
    "rich": {"cli", "terminal"},
    "sklearn": {"search"},
    "yaml": {"local", "cli"},
}
# Imports a module while it notes the variables that were asked for and every attempt to reach a network or to start a
# program, and tells them together with the modules that are loaded then.
PROBE = """
import json, os, sys

asked, reached = set(), []

class Noting(type(os.environ)):
    def __getitem__(self, name):
        asked.add(name)
        return super().__getitem__(name)

    def __contains__(self, name):
        asked.add(name)
        return super().__contains__(name)

os.environ.__class__ = Noting
WATCHED = ("socket.connect", "socket.getaddrinfo", "socket.sendto", "subprocess.Popen", "os.posix_spawn")
sys.addaudithook(lambda event, args: reached.append(event) if event in WATCHED else None)
sys.path.insert(0, sys.argv[1])
__import__(sys.argv[2])
files = {name: getattr(module, "__file__", None) for name, module in sys.modules.items()}
json.dump({"files": files, "asked": sorted(asked), "reached": reached}, sys.stdout)
"""


@cache
def imported(folder: str, module: str) -> dict[str, Any]:
    """What happened when a module of a folder was imported in a fresh interpreter with an empty environment."""
    environ = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"}
    words = [sys.executable, "-c", PROBE, str(PROJECT / folder), module]
    done = subprocess.run(words, env=environ, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def app(function: str) -> dict[str, Any]:
    return imported(f"functions/{function}", "app")


def packages(found: dict[str, Any]) -> set[str]:
    return {name.split(".")[0] for name in found["files"]}


def locked(function: str) -> set[str]:
    text = (PROJECT / f"functions/{function}/requirements.txt").read_text()
    return {re.sub(r"[-_.]+", "-", name).lower() for name in re.findall(r"^([A-Za-z0-9._-]+)==", text, re.MULTILINE)}


def distributions() -> dict[str, set[str]]:
    """Names of distributions by the packages that they bring."""
    found = importlib.metadata.packages_distributions()
    return {package: {re.sub(r"[-_.]+", "-", name).lower() for name in names} for package, names in found.items()}


def outside(file: Path) -> set[str]:
    """The packages that a file imports anywhere in it, but for the standard library and retrue."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
        found |= {name.split(".")[0] for name in names}
    return found - sys.stdlib_module_names - {"retrue"}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_function_loads_nothing_that_it_does_not_need(function: str) -> None:
    assert "retrue" in packages(app(function))
    assert FORBIDDEN[function] & packages(app(function)) == set()


@pytest.mark.parametrize("function", FUNCTIONS)
def test_an_import_reads_no_settings_and_reaches_nothing(function: str) -> None:
    assert OWN_VARIABLES & set(app(function)["asked"]) == set()
    assert app(function)["reached"] == []


@pytest.mark.parametrize("function", FUNCTIONS)
def test_no_function_imports_another(function: str) -> None:
    files = [file for file in app(function)["files"].values() if file]
    others = [PROJECT / "functions" / name for name in FUNCTIONS if name != function]
    assert str(PROJECT / "functions" / function / "app.py") in files
    assert [file for file in files if any(Path(file).is_relative_to(other) for other in others)] == []


@pytest.mark.parametrize("function", FUNCTIONS)
def test_whatever_a_function_imports_now_or_later_is_in_its_image(function: str) -> None:
    own = [PROJECT / "functions" / function, PROJECT / "src"]
    known, missing = distributions(), set()
    for file in app(function)["files"].values():
        if file and any(Path(file).is_relative_to(folder) for folder in own):
            for package in outside(Path(file)):
                is_own = (own[0] / f"{package}.py").is_file()
                if not is_own and not known.get(package, set()) & locked(function):
                    missing.add((Path(file).name, package))
    assert missing == set()


def test_the_server_needs_nothing_that_is_not_in_the_image_and_reads_nothing_at_import() -> None:
    found = imported("functions/predict", "server")
    assert packages(found) & (EVERYWHERE | {"scipy", "sklearn", "mlflow"}) == set()
    assert (OWN_VARIABLES & set(found["asked"]), found["reached"]) == (set(), [])
    known = distributions()
    for file in (PROJECT / "functions/predict").glob("*.py"):
        for package in outside(file):
            is_own = (PROJECT / f"functions/predict/{package}.py").is_file()
            assert is_own or known.get(package, set()) & locked("predict"), (file.name, package)


@pytest.mark.parametrize("package", OWNERS)
def test_an_outside_thing_is_known_to_its_owners_only(package: str) -> None:
    root = PROJECT / "src/retrue"
    knowing = {
        path.relative_to(root).parts[0].removesuffix(".py") for path in root.rglob("*.py") if package in outside(path)
    }
    assert knowing == OWNERS[package]


def test_the_command_line_starts_without_torch() -> None:
    found = imported("src", "retrue.cli")
    assert packages(found) & {"torch", "transformers", "mlflow", "pyarrow", "sklearn"} == set()
    assert found["reached"] == []


@pytest.mark.parametrize(
    "module", ["retrue.records", "retrue.errors", "retrue.settings", "retrue.artifact", "retrue.dataset"]
)
def test_a_noun_needs_nothing_but_the_standard_library(module: str) -> None:
    before = packages(imported("src", "json"))  # what the environment itself loads at the start
    assert packages(imported("src", module)) - before - sys.stdlib_module_names == {"retrue"}


def test_the_layers_are_kept() -> None:
    done = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_module_is_in_a_layer() -> None:
    contracts = (PROJECT / ".importlinter").read_text()
    layers = contracts.partition("layers =\n")[2].partition("\n\n")[0]
    named = set(re.findall(r"retrue\.(\w+)", layers))
    paths = list((PROJECT / "src/retrue").iterdir())
    modules = {path.stem for path in paths if path.suffix == ".py"} | {
        p.name for p in paths if (p / "__init__.py").is_file()
    }
    assert named == modules - {"__init__"}


def test_the_architecture_names_every_module_with_what_it_is_for() -> None:
    page = (PROJECT / "docs/architecture.md").read_text()
    told = re.findall(r"^\| `(\w+)` \| \S", page.partition("## One owner")[0], re.MULTILINE)
    paths = [path for path in (PROJECT / "src/retrue").iterdir() if not path.name.startswith(("_", "py."))]
    modules = [path.stem for path in paths if path.suffix != ".j2"]
    assert sorted(told) == sorted(modules)
