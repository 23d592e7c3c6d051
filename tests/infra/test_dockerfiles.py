"""The images and their lock files, held to the template and to each other."""

import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections import defaultdict
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

import pytest

from retrue.local import localize

PROJECT = Path(__file__).resolve().parents[2]
DOCKERFILES = sorted(path.relative_to(PROJECT).as_posix() for path in PROJECT.glob("functions/*/Dockerfile*"))
JOB = "functions/train/Dockerfile.job"
JOB_LOCK = "functions/train/requirements-job.txt"
IMAGE_LOCKS = sorted(path.relative_to(PROJECT).as_posix() for path in PROJECT.glob("functions/*/requirements*.txt"))
LOCKS = [*IMAGE_LOCKS, *sorted(path.relative_to(PROJECT).as_posix() for path in PROJECT.glob("locks/*.txt"))]
RUNTIME = ["python", "-m", "awslambdaric"]
# The predict image serves HTTP as well.
ENTRIES = {"functions/predict/Dockerfile": ["python", "/var/task/start.py"]}
HEAVY = {"torch", "transformers", "optimum"}


def instructions(dockerfile: str) -> list[tuple[str, str]]:
    """Instructions as (name, rest), continued lines joined, comments left out."""
    lines = [line for line in (PROJECT / dockerfile).read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(name.upper(), rest) for name, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def copied(dockerfile: str) -> list[str]:
    """Sources that come from the project, not from another stage."""
    found: list[str] = []
    for name, rest in instructions(dockerfile):
        if name in {"COPY", "ADD"} and not rest.startswith("--from="):
            found += shlex.split(rest)[:-1]
    return found


def let_through(path: str, rules: list[str]) -> bool:
    """Whether .dockerignore lets a path into the build: the last rule that matches it or a folder of it decides."""
    passed = True
    names = [PurePosixPath(path), *PurePosixPath(path).parents][:-1]
    for rule in rules:
        pattern = rule.removeprefix("!").strip("/").split("/")
        if any(matches(list(name.parts), pattern) for name in names):
            passed = rule.startswith("!")
    return passed


def matches(parts: list[str], pattern: list[str]) -> bool:
    if not pattern or not parts:
        return not pattern and not parts
    if pattern[0] == "**":
        return any(matches(parts[k:], pattern[1:]) for k in range(len(parts) + 1))
    return fnmatchcase(parts[0], pattern[0]) and matches(parts[1:], pattern[1:])


def ignore_rules() -> list[str]:
    lines = [line.strip() for line in (PROJECT / ".dockerignore").read_text().splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def requirements(lock: str) -> list[str]:
    """One text for each requirement, its continued lines joined."""
    joined = re.sub(r"\\\n\s*", "", (PROJECT / lock).read_text())
    return [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]


def versions(lock: str) -> dict[str, set[str]]:
    """The versions that a lock file gives each package; more than one where they depend on the Python version."""
    found: dict[str, set[str]] = defaultdict(set)
    for line in requirements(lock):
        name, _, rest = line.partition("==")
        found[name].add(rest.split()[0])
    return found


def test_the_rules_of_dockerignore_are_read_as_docker_reads_them() -> None:
    rules = ["*", "!functions", "**/__pycache__"]
    assert let_through("functions/predict/app.py", rules)
    assert not let_through("functions/predict/__pycache__/app.pyc", rules)
    assert not let_through(".venv/bin/python", rules)


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_what_is_copied_exists_and_is_let_into_the_build(dockerfile: str) -> None:
    sources = copied(dockerfile)
    assert sources
    for source in sources:
        files = [path for path in PROJECT.glob(source) if "__pycache__" not in path.parts]
        assert files, source
        for path in files:
            inside = [path] if path.is_file() else list(path.rglob("*.py"))
            assert inside, source
            for file in inside:
                assert let_through(file.relative_to(PROJECT).as_posix(), ignore_rules()), file


@pytest.mark.parametrize("path", [".venv/bin/python", ".retrue/mlflow.db", ".git/config", "tests/conftest.py"])
def test_the_build_gets_nothing_else(path: str) -> None:
    assert not let_through(path, ignore_rules())


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_only_syntax_that_every_builder_knows_is_used(dockerfile: str) -> None:
    text = (PROJECT / dockerfile).read_text()
    assert not re.match(r"#\s*syntax", text, re.IGNORECASE)
    assert "<<" not in text
    for name, rest in instructions(dockerfile):
        if name == "RUN":
            assert not rest.startswith("--"), rest
        if name in {"COPY", "ADD"}:
            assert not re.search(r"--(chmod|link|exclude|parents)", rest), rest


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_libraries_send_nothing_home_and_start_no_threads_in_functions(dockerfile: str) -> None:
    last_stage = instructions(dockerfile)
    starts = [k for k, (name, rest) in enumerate(last_stage) if name == "FROM" and rest.startswith("${BASE_IMAGE}")]
    variables = " ".join(rest for name, rest in last_stage[starts[-1] :] if name == "ENV")
    assert "ORT_DISABLE_TELEMETRY=1" in variables.split()
    assert dockerfile == JOB or "OPENBLAS_NUM_THREADS=1" in variables.split()


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_the_base_image_can_be_chosen_for_every_stage(dockerfile: str) -> None:
    found = instructions(dockerfile)
    assert [rest.partition("=")[0] for name, rest in found if name == "ARG"][:2] == ["PYTHON_VERSION", "BASE_IMAGE"]
    stages = {rest.split()[0] for name, rest in found if name == "FROM"}
    assert stages - {"function"} == {"${BASE_IMAGE}"}


@pytest.mark.parametrize("dockerfile", [name for name in DOCKERFILES if name != JOB])
def test_an_image_starts_the_handler_of_the_template_and_not_as_root(dockerfile: str) -> None:
    template = localize.read(PROJECT / "template.yaml")
    commands = [
        resource["Properties"]["ImageConfig"]["Command"]
        for resource in template["Resources"].values()
        if resource.get("Metadata", {}).get("Dockerfile") == dockerfile
    ]
    found = dict(instructions(dockerfile))
    assert json.loads(found["CMD"]) in commands
    assert json.loads(found["ENTRYPOINT"]) == ENTRIES.get(dockerfile, RUNTIME)
    assert found["USER"] == "nobody"


START = """
import sys, types

def stand_in(name):
    module = types.ModuleType(name)
    module.main = lambda words: print(name, words)
    sys.modules[name] = module

stand_in("awslambdaric")
stand_in("awslambdaric.__main__")
stand_in("server")
path = sys.argv.pop(1)
sys.argv[0] = path
exec(compile(open(path).read(), path, "exec"))
print(sorted(name for name in ("app", "uvicorn") if name in sys.modules))
"""


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["app.handler"], "awslambdaric.__main__ ['start.py', 'app.handler']"),
        (["serve"], "server []"),
        (["serve", "--port", "9000"], "server ['--port', '9000']"),
    ],
)
def test_the_predict_image_starts_what_its_command_says(words: list[str], told: str) -> None:
    command = [sys.executable, "-c", START, "start.py", *words]
    folder = PROJECT / "functions/predict"
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines() == [told, "[]"]


def test_the_template_takes_the_stage_to_which_sam_local_can_add() -> None:
    for dockerfile in set(DOCKERFILES) - {JOB}:
        stages = [rest for name, rest in instructions(dockerfile) if name == "FROM"]
        assert stages[-2:] == ["${BASE_IMAGE} AS function", "function"]
        assert [name for name, _ in instructions(dockerfile)][-2:] == ["FROM", "USER"]
    template = localize.read(PROJECT / "template.yaml")
    metadata = [r["Metadata"] for r in template["Resources"].values() if "Dockerfile" in r.get("Metadata", {})]
    assert {each["DockerBuildTarget"] for each in metadata} == {"function"}


def test_every_function_of_the_template_has_an_image() -> None:
    template = localize.read(PROJECT / "template.yaml")
    named = {
        r["Metadata"]["Dockerfile"] for r in template["Resources"].values() if "Dockerfile" in r.get("Metadata", {})
    }
    assert named == set(DOCKERFILES) - {JOB}


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_an_image_installs_its_own_lock_file_and_checks_the_hashes(dockerfile: str) -> None:
    expected = JOB_LOCK if dockerfile == JOB else f"{Path(dockerfile).parent.as_posix()}/requirements.txt"
    assert expected in copied(dockerfile)
    installs = [rest for name, rest in instructions(dockerfile) if name == "RUN" and "-r /requirements.txt" in rest]
    (install,) = installs
    assert {"--require-hashes", "--no-deps", "--only-binary=:all:"} <= set(install.split())


def test_the_job_s_image_has_the_torch_of_the_project() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    (wanted,) = [item for item in project["project"]["optional-dependencies"]["train"] if item.startswith("torch==")]
    assert wanted in (PROJECT / JOB).read_text().split()
    assert wanted in (PROJECT / "Makefile").read_text().split()


@pytest.mark.parametrize("lock", LOCKS)
def test_every_requirement_is_pinned_and_has_a_hash(lock: str) -> None:
    lines = requirements(lock)
    assert lines
    for line in lines:
        assert re.match(r"[a-z0-9.-]+==[^ ;]+ .*--hash=sha256:[0-9a-f]{64}", line), line[:60]


@pytest.mark.parametrize("lock", IMAGE_LOCKS)
def test_an_image_has_the_versions_that_the_tests_ran_with(lock: str) -> None:
    tested = versions("locks/dev.txt")
    for name, found in versions(lock).items():
        assert found <= tested[name], name


@pytest.mark.parametrize("lock", IMAGE_LOCKS)
def test_what_training_needs_is_in_the_job_s_image_only(lock: str) -> None:
    heavy = HEAVY & set(versions(lock))
    assert heavy == ({"transformers"} if lock == JOB_LOCK else set())
