"""What is taken out of the images' packages, and that no function asks a service whose description is gone."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
FUNCTIONS = ("predict", "batch", "monitor", "train")
CLIENT = re.compile(r'boto3\.client\(\s*"([a-z0-9-]+)"')


def slim(packages: Path, *services: str) -> "subprocess.CompletedProcess[str]":
    words = [sys.executable, str(PROJECT / "infra/slim.py"), str(packages), *services]
    return subprocess.run(words, capture_output=True, text=True, check=False)


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """Packages as pip leaves them, as far as they matter here."""
    for name in (
        "botocore/data/s3/2006-03-01/service-2.json",
        "botocore/data/sts/2011-06-15/service-2.json",
        "botocore/data/ec2/2016-11-15/service-2.json",
        "botocore/data/endpoints.json",
        "numpy/lib/tests/test_io.py",
        "numpy/__init__.pyi",
        "numpy/_core/include/numpy/arrayobject.h",
        "numpy/lib/io.py",
        "onnxruntime/capi/libonnxruntime.so.1.31.1",
        "onnxruntime/capi/libonnxruntime_providers_shared.so",
        "onnxruntime/capi/state.so",
        "onnxruntime/quantization/quantize.py",
        "onnxruntime/tools/file.py",
        "onnxruntime/transformers/optimizer.py",
    ):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("")
    return tmp_path


def test_what_no_function_needs_is_gone_and_nothing_else(packages: Path) -> None:
    assert slim(packages, "s3").returncode == 0
    left = {file.relative_to(packages).as_posix() for file in packages.rglob("*") if file.is_file()}
    assert left == {
        "botocore/data/endpoints.json",
        "botocore/data/s3/2006-03-01/service-2.json",
        "botocore/data/sts/2011-06-15/service-2.json",
        "numpy/lib/io.py",
        "onnxruntime/capi/libonnxruntime_providers_shared.so",
        "onnxruntime/capi/state.so",
    }


def test_a_build_ends_where_a_package_no_longer_looks_as_it_did(packages: Path) -> None:
    (packages / "onnxruntime/capi/libonnxruntime.so.1.31.1").unlink()
    done = slim(packages, "s3")
    assert done.returncode == 1
    assert "look what it brings instead" in done.stderr


def test_a_build_ends_at_a_service_that_botocore_does_not_know(packages: Path) -> None:
    done = slim(packages, "s3", "glacier2")
    assert done.returncode == 1
    assert "botocore knows no service glacier2" in done.stderr


@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_service_that_a_function_can_ask_is_left(function: str) -> None:
    code = f"import sys; sys.path.insert(0, {str(PROJECT / 'functions' / function)!r}); import app; " + (
        "print(*(m.__file__ for n, m in sys.modules.items() if n.startswith('retrue.') or n == 'app'))"
    )
    files = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    asked = {name for file in files for name in CLIENT.findall(Path(file).read_text())}
    found = re.search(r"python /slim\.py /packages ([a-z0-9 ]+)$", _dockerfile(function), re.MULTILINE)
    assert found is not None
    assert "s3" in asked
    assert asked == set(found[1].split())


def _dockerfile(function: str) -> str:
    return (PROJECT / f"functions/{function}/Dockerfile").read_text()
