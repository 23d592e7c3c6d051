"""Container images on this machine, with the engine that it has.

    python infra/images.py base                  the base image, or a stand-in where no registry is reachable
    python infra/images.py build predict job     images from their Dockerfiles

docker builds where its daemon answers, else podman, else buildah, which cannot run what it builds. PYTHON_VERSION and
BASE_IMAGE in the environment are the Dockerfiles' own arguments.
"""

import argparse
import ast
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
DOCKERFILES = {
    **{name: f"functions/{name}/Dockerfile" for name in ("predict", "batch", "monitor", "train")},
    "job": "functions/train/Dockerfile.job",
}
ARGUMENTS = ("PYTHON_VERSION", "BASE_IMAGE", "TORCH_INDEX")
CAP_SYS_RESOURCE = 24
# What a build needs of this machine's pip; folders that only this machine has are mounted where the engine can.
PIP_SETTINGS = ("index-url", "extra-index-url", "find-links", "trusted-host", "proxy", "retries", "timeout")
CA_FILE = "/etc/ssl/certs/ca-certificates.crt"

# The stand-in: the Debian of the public image, and the packages that its interpreter is linked with.
SUITE = "bookworm"
PACKAGES = (
    "ca-certificates", "libbz2-1.0", "libexpat1", "libffi8", "libgomp1", "liblzma5", "libncursesw6", "libreadline8",
    "libsqlite3-0", "libssl3", "libstdc++6", "libuuid1", "netbase", "tzdata", "zlib1g",
)  # fmt: skip
LEFT_OUT = ("/usr/share/doc/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/man/*")
NOT_IN_SLIM = {"__pycache__", "test", "tests", "idlelib", "tkinter", "turtledemo", "site-packages"}
STAND_IN = """FROM scratch
LABEL stand-in="{name}"
ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8
ADD debian.tar python.tar machine.tar /
RUN ldconfig && ln -s python{version} /usr/local/bin/python3 && ln -s python3 /usr/local/bin/python \\
    && python -c "import bz2, ctypes, lzma, readline, sqlite3, ssl, uuid, zlib" \\
    && python -m ensurepip --default-pip \\
    && find /usr/local -name __pycache__ -exec rm -rf {{}} +
CMD ["python3"]
"""


class Unable(Exception):
    """This machine cannot do it; the message says what it lacks."""


@dataclass(frozen=True)
class Engine:
    """A program that builds images, and runs them unless it is buildah."""

    path: str

    @property
    def name(self) -> str:
        return Path(self.path).name

    @property
    def environ(self) -> Mapping[str, str]:
        """Root inside a container may not raise limits as podman does by default, so podman is configured for that."""
        confined = os.geteuid() == 0 and not _capabilities() >> CAP_SYS_RESOURCE & 1
        own = {"CONTAINERS_CONF": str(PROJECT / "infra/containers.conf")} if confined else {}
        return own | os.environ

    def run(self, *words: str, quiet: bool = False) -> bool:
        """Whether the engine's command succeeds."""
        silent = subprocess.DEVNULL if quiet else None
        done = subprocess.run([self.path, *words], env=self.environ, stdout=silent, stderr=silent, check=False)
        return done.returncode == 0

    def build(self, name: str, dockerfile: Path, context: Path, arguments: Mapping[str, str]) -> None:
        """Build one image; Unable where it fails."""
        words = ["--file", str(dockerfile), "--tag", name]
        for key, value in arguments.items():
            words += ["--build-arg", f"{key}={value}"]
        if self.name != "docker":
            # A build needs no bridge of its own, and the format is the one that Lambda takes from docker.
            words += ["--network", "host", "--format", "docker", "--layers"]
            for folder in _folders():
                words += ["--volume", f"{folder}:{folder}:ro"]
        if not self.run("build", *words, str(context)):
            raise Unable(f"{self.name} could not build {name}")

    def has(self, image: str) -> bool:
        words = ("inspect", "--type", "image") if self.name == "buildah" else ("image", "inspect")
        return self.run(*words, image, quiet=True)


def engine() -> Engine:
    """The engine of this machine; Unable where it has none."""
    docker = shutil.which("docker")
    if docker and Engine(docker).run("info", quiet=True):
        return Engine(docker)
    found = shutil.which("podman") or shutil.which("buildah")
    if not found:
        raise Unable("no container engine: start docker, or install podman (apt-get install podman runc)")
    return Engine(found)


def base_image(environ: Mapping[str, str]) -> tuple[str, str]:
    """Name of the base image and its Python version, as the Dockerfiles have them where nothing else is chosen."""
    version = environ.get("PYTHON_VERSION", "3.12")
    return environ.get("BASE_IMAGE", f"public.ecr.aws/docker/library/python:{version}-slim-bookworm"), version


def base(found: Engine, environ: Mapping[str, str]) -> None:
    """Have the base image here: from its registry, or else a stand-in under its public name."""
    name, version = base_image(environ)
    if found.has(name) or found.run("pull", name, quiet=True):
        print(f"{name} is here")
        return
    print(f"{name} cannot be pulled: building a stand-in from Debian packages")
    with tempfile.TemporaryDirectory() as folder:
        context = Path(folder)
        _debian(context / "debian.tar")
        _python(version, context / "python.tar")
        _machine(context / "machine.tar")
        (context / "Dockerfile").write_text(STAND_IN.format(name=name, version=version))
        found.build(name, context / "Dockerfile", context, {})


def build(found: Engine, names: list[str], environ: Mapping[str, str]) -> None:
    """Build images as retrue-<name>."""
    arguments = {name: environ[name] for name in ARGUMENTS if name in environ}
    for name in names:
        file = PROJECT / DOCKERFILES[name]
        known = file.read_text()
        found.build(f"retrue-{name}", file, PROJECT, {k: v for k, v in arguments.items() if f"ARG {k}" in known})


def _debian(archive: Path) -> None:
    program = shutil.which("mmdebstrap")
    if not program:
        raise Unable("the stand-in base needs mmdebstrap (apt-get install mmdebstrap)")
    options = [f"--dpkgopt=path-exclude={path}" for path in LEFT_OUT]
    words: list[str] = [program, "--quiet", "--variant=essential", f"--include={','.join(PACKAGES)}", *options]
    if subprocess.run([*words, SUITE, str(archive)], check=False).returncode:
        raise Unable("mmdebstrap could not make the stand-in's file system")


def _interpreter(version: str) -> Path:
    """The prefix of an interpreter of this machine that stands in a folder of its own."""
    shims = [found] if (found := shutil.which(f"python{version}")) else []
    for path in [*shims, *sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python{version}"), reverse=True)]:
        words = [str(path), "-c", "import sys; print(sys.base_prefix)"]
        asked = subprocess.run(words, capture_output=True, text=True, check=False)
        if asked.returncode == 0 and asked.stdout.strip() != "/usr":
            return Path(asked.stdout.strip())
    raise Unable(f"the stand-in base needs a python{version} of this machine's, from pyenv or under /usr/local")


def _python(version: str, archive: Path) -> None:
    """The interpreter where the public image has it, under /usr/local, and without tests and byte code as there."""
    prefix = _interpreter(version)
    with tarfile.open(archive, "w") as tar:
        for path in [
            prefix / f"bin/python{version}",
            prefix / f"lib/python{version}",
            *prefix.glob("lib/libpython*.so*"),
        ]:
            tar.add(path, f"usr/local/{path.relative_to(prefix)}", filter=_slim)


def _slim(item: tarfile.TarInfo) -> tarfile.TarInfo | None:
    parts = Path(item.name).parts
    if NOT_IN_SLIM & set(parts) or parts[-1].startswith(("_tkinter", "config-")):
        return None
    item.uid = item.gid = 0
    item.uname = item.gname = "root"
    return item


def _machine(archive: Path) -> None:
    """This machine's pip configuration, and the authorities that it trusts where pip is told of them."""
    settings = _pip()
    lines = ["[global]", *(f"{k} = {v}" for k, v in settings.items() if v and k in PIP_SETTINGS)]
    if "cert" in settings:
        lines.append(f"cert = {CA_FILE}")
    with tarfile.open(archive, "w") as tar:
        content = "\n".join([*lines, ""]).encode()
        item = tarfile.TarInfo("etc/pip.conf")
        item.size = len(content)
        tar.addfile(item, io.BytesIO(content))
        if "cert" in settings:
            tar.add(settings["cert"], CA_FILE.lstrip("/"))


def _pip() -> dict[str, str]:
    """What pip is configured with on this machine, from its files and from the environment."""
    words = [sys.executable, "-m", "pip", "config", "list"]
    told = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    found = {}
    for line in told.splitlines():
        name, _, value = line.partition("=")
        # An index that is a folder of this machine would only be warned of in a build.
        words = [word for word in str(ast.literal_eval(value)).split() if not word.startswith("file:")]
        found[name.rpartition(".")[2].replace("default-timeout", "timeout")] = " ".join(words)
    return found


def _folders() -> list[str]:
    """Folders of wheels that only this machine has."""
    return [word for word in _pip().get("find-links", "").split() if Path(word).is_dir()]


def _capabilities() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("CapEff:")[2].split()[0], 16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("base")
    commands.add_parser("build").add_argument("names", nargs="+", choices=DOCKERFILES)
    chosen = parser.parse_args()
    try:
        found = engine()
        if chosen.command == "base":
            base(found, os.environ)
        else:
            build(found, chosen.names, os.environ)
    except Unable as error:
        sys.exit(f"images: {error}")


if __name__ == "__main__":
    main()
