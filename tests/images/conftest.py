"""The images on this machine's engine, each function with the memory, the CPU and the rights that Lambda gives it."""

import importlib.util
import io
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from retrue import artifact
from retrue.lake import CURRENT_DATASET, DATASETS, MODELS, Lake
from retrue.local import cloud, localize
from retrue.local.home import Home, endpoint_environ, session
from retrue.settings import MEGABYTES_OF_ONE_CPU

PROJECT = Path(__file__).resolve().parents[2]
REPORT = PROJECT / "dist/images"
TEMPLATE: dict[str, Any] = localize.read(PROJECT / "template.yaml")
RESOURCES: dict[str, Any] = TEMPLATE["Resources"]
FUNCTIONS = [name for name, resource in RESOURCES.items() if resource["Type"] == "AWS::Serverless::Function"]
IMAGES = {name: Path(RESOURCES[name]["Metadata"]["Dockerfile"]).parent.name for name in FUNCTIONS}
BUCKET, PARAMETER = "retrue-images", "/retrue/images/model"
LAMBDA_USER = "993:990"
TMP = "/tmp"  # noqa: S108 - all that Lambda leaves to a function
START_SECONDS = 120.0
PEAK = """
import os, re
from pathlib import Path
own = {"self", "thread-self", str(os.getpid())}
texts = [p.read_text() for p in Path("/proc").glob("[0-9]*/status") if p.parent.name not in own]
print(sum(int(m[1]) for text in texts if (m := re.search(r"VmHWM:\\s+(\\d+) kB", text))))
"""


def without(reason: str) -> None:
    """Skip, or fail where REQUIRE_CONTAINERS asks for it."""
    if os.environ.get("REQUIRE_CONTAINERS") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait(done: Callable[[], object], seconds: float = START_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"nothing came in {seconds:.0f} s"
        time.sleep(0.02)


@pytest.fixture(scope="session", name="free_port")
def _free_port() -> Callable[[], int]:
    return free_port


@pytest.fixture(scope="session", name="wait")
def _wait() -> Callable[..., None]:
    return wait


@pytest.fixture(scope="session")
def images() -> ModuleType:
    """infra/images.py."""
    spec = importlib.util.spec_from_file_location("images", PROJECT / "infra/images.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["images"] = module
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Containers:
    """The engine, as the tests use it."""

    path: str
    environ: dict[str, str]

    def ask(self, *words: str) -> str:
        done = subprocess.run(
            [self.path, *words], env=self.environ, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(self, *words: str, log: Path) -> "subprocess.Popen[bytes]":
        with log.open("wb") as file:
            return subprocess.Popen([self.path, *words], env=self.environ, stdout=file, stderr=file)

    def has(self, image: str) -> bool:
        words = [self.path, "image", "inspect", image]
        return not subprocess.run(words, env=self.environ, capture_output=True, check=False).returncode


@pytest.fixture(scope="session")
def engine(images: ModuleType) -> Containers:
    try:
        found = images.engine()
    except images.Unable as error:
        without(str(error))
    if found.name == "buildah":
        without("buildah cannot run images: install podman")
    return Containers(found.path, dict(found.environ))


@pytest.fixture(scope="session")
def image(engine: Containers) -> Callable[[str], str]:
    """Name of a built image; IMAGES says which there shall be."""
    chosen = os.environ.get("IMAGES")

    def built(name: str) -> str:
        if chosen is not None and name not in chosen.split():
            pytest.skip(f"IMAGES leaves {name} out")
        if not engine.has(f"retrue-{name}"):
            without(f"the image retrue-{name} is not built: make base images")
        return f"retrue-{name}"

    return built


@pytest.fixture(scope="session")
def docker_host(engine: Containers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """An environment in which programs that speak Docker's API find the engine."""
    if Path(engine.path).name == "docker":
        yield engine.environ
        return
    path = tmp_path_factory.mktemp("podman") / "podman.sock"
    log = path.with_suffix(".log")
    service = engine.start("system", "service", "--time=0", f"unix://{path}", log=log)
    try:
        wait(lambda: path.exists() or service.poll() is not None)
        assert service.poll() is None, log.read_text()
        yield engine.environ | {"DOCKER_HOST": f"unix://{path}"}
    finally:
        service.terminate()
        service.wait(60)


@pytest.fixture(scope="session")
def sam() -> Path:
    """The folder of the programs in .venv-sam."""
    folder = PROJECT / ".venv-sam/bin"
    if not (folder / "sam").is_file():
        without("the AWS SAM CLI is not installed: make test-images installs it into .venv-sam")
    return folder


@pytest.fixture(scope="session")
def tool() -> Callable[[str], str]:
    """Path of a program in .venv-images."""

    def found(name: str) -> str:
        path = PROJECT / ".venv-images/bin" / name
        if not path.is_file():
            without(f"{name} is not installed: make test-images installs it into .venv-images")
        return str(path)

    return found


@pytest.fixture(scope="session")
def emulator(sam: Path) -> Path:
    """AWS's Runtime Interface Emulator, which the SAM CLI brings along."""
    machine = {"aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
    (path,) = sam.parent.glob(f"lib/python*/site-packages/samcli/local/rapid/aws-lambda-rie-{machine}")
    return path


@dataclass(frozen=True)
class World:
    """A cloud on this machine with a lake, a model that serves, a dataset, and a predict function."""

    environ: dict[str, str]
    lake: Lake
    model: str
    dataset: str


@pytest.fixture(scope="session")
def world(
    engine: Containers, tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_dataset: Path
) -> Iterator[World]:
    """The engine comes first: without one there is no use in a model."""
    home, port = Home(tmp_path_factory.mktemp("cloud")), free_port()
    process = cloud.start(home, PROJECT / ".venv-cloud/bin/python", port)
    try:
        endpoint = f"http://127.0.0.1:{port}"
        clients = session(endpoint)
        lake, id = Lake(BUCKET, clients.client("s3")), artifact.identity(tiny_model)
        clients.client("s3").create_bucket(Bucket=BUCKET)
        lake.upload_folder(tiny_model, f"{MODELS}{id}/")
        lake.upload_folder(tiny_dataset, f"{DATASETS}{tiny_dataset.name}/")
        lake.put(CURRENT_DATASET, tiny_dataset.name.encode())
        clients.client("ssm").put_parameter(Name=PARAMETER, Value=lake.uri(f"{MODELS}{id}/"), Type="String")
        code = io.BytesIO()
        with zipfile.ZipFile(code, "w") as archive:
            archive.writestr("app.py", "def handler(event, context): return event")
        role = clients.client("iam").create_role(RoleName="predict", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
        shape = {"Runtime": "python3.11", "Handler": "app.handler", "Role": role}
        functions = clients.client("lambda")
        functions.create_function(FunctionName="predict", Code={"ZipFile": code.getvalue()}, **shape)
        functions.publish_version(FunctionName="predict")
        functions.create_alias(FunctionName="predict", Name="live", FunctionVersion="1")
        environ = endpoint_environ(endpoint) | {
            "BUCKET": BUCKET,
            "ENVIRONMENT": "images",
            "MODEL_PARAMETER": PARAMETER,
            "MODEL_URI": lake.uri(f"{MODELS}{id}/"),
            "STATE_MACHINE_ARN": "arn:aws:states:us-east-1:000000000000:stateMachine:none",
            "SCORING_ARN": "arn:aws:states:us-east-1:000000000000:stateMachine:none",
            "MLFLOW_TRACKING_URI": "",
            "FUNCTION": "predict",
        }
        yield World(environ, lake, id, tiny_dataset.name)
    finally:
        process.terminate()
        process.wait(60)


@dataclass
class Function:
    """A function of the template in its container."""

    engine: Containers
    name: str
    port: int
    process: "subprocess.Popen[bytes]"
    log: Path
    began: float = field(default_factory=time.perf_counter)

    def invoke(self, event: dict[str, Any]) -> Any:
        """The function's answer, as soon as its emulator listens."""
        url = f"http://127.0.0.1:{self.port}/2015-03-31/functions/function/invocations"
        body = json.dumps(event).encode()
        wait(self.listens)
        with urllib.request.urlopen(urllib.request.Request(url, body), timeout=300) as answer:
            return json.loads(answer.read())

    def listens(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def peak_mb(self) -> float:
        """Most memory that its processes held, in MB; what lies in /tmp counts as disk, as in Lambda."""
        return int(self.engine.ask("exec", self.name, "python", "-c", PEAK)) / 1024


@pytest.fixture
def start(
    engine: Containers, image: Callable[[str], str], emulator: Path, world: World, tmp_path: Path
) -> Iterator[Callable[..., Function]]:
    """Starts a function of the template under the emulator, bound as Lambda binds it."""
    started: list[Function] = []

    def run(logical: str, **more: str) -> Function:
        properties = RESOURCES[logical]["Properties"]
        memory, disk = properties["MemorySize"], properties.get("EphemeralStorage", {"Size": 512})["Size"]
        if isinstance(memory, dict):
            memory = TEMPLATE["Parameters"][memory["Ref"]]["Default"]
        own = image(IMAGES[logical])
        entry = json.loads(engine.ask("image", "inspect", own))[0]["Config"]["Entrypoint"]
        port, name = free_port(), f"retrue-{uuid.uuid4().hex[:12]}"
        environ = world.environ | more | {
            "AWS_LAMBDA_FUNCTION_NAME": logical,
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(memory),
            "AWS_LAMBDA_FUNCTION_TIMEOUT": str(properties["Timeout"]),
        }  # fmt: skip
        cpus = min(memory / MEGABYTES_OF_ONE_CPU, float(os.cpu_count() or 1))
        words = ["run", "--rm", "--name", name, "--network", "host", "--pull", "never"]
        words += ["--memory", f"{memory}m", "--memory-swap", f"{memory}m", "--cpus", f"{cpus:.2f}"]
        words += ["--read-only", "--tmpfs", f"{TMP}:size={disk}m,mode=1777", "--user", LAMBDA_USER]
        words += ["--cap-drop", "all", "--security-opt", "no-new-privileges"]
        for key, value in environ.items():
            words += ["--env", f"{key}={value}"]
        words += ["--volume", f"{emulator}:/rie:ro", "--entrypoint", "/rie", own, "--log-level", "info"]
        words += ["--runtime-interface-emulator-address", f"127.0.0.1:{port}"]
        words += ["--runtime-api-address", f"127.0.0.1:{free_port()}", *entry, *properties["ImageConfig"]["Command"]]
        log = tmp_path / f"{name}.log"
        function = Function(engine, name, port, engine.start(*words, log=log), log)
        started.append(function)
        return function

    yield run
    for function in started:
        engine.ask("rm", "--force", "--volumes", function.name)
        function.process.wait(60)


@pytest.fixture(scope="session")
def report(engine: Containers) -> Iterator[dict[str, dict[str, str]]]:
    """What the tests measured of each function: {row: {column: value}}; written down when they end."""
    rows: dict[str, dict[str, str]] = {}
    yield rows
    lines: list[list[str]] = []
    for columns in dict.fromkeys(tuple(row) for row in rows.values()):
        lines += [["", *columns], ["---"] * (len(columns) + 1)]
        lines += [[name, *row.values()] for name, row in rows.items() if tuple(row) == columns] + [[]]
    if lines:
        REPORT.mkdir(parents=True, exist_ok=True)
        (REPORT / "report.md").write_text("".join(f"| {' | '.join(line)} |\n" if line else "\n" for line in lines))
