"""Takes out of an image's packages what no function needs; runs where the Dockerfiles install them.

    python slim.py /packages s3 kms     the AWS services that the function asks

Gone are tests, stubs and headers, onnxruntime's library for programs in C (the module for Python has its own) and its
tools that make models, and botocore's descriptions of services that nobody asks: a tenth to a third of the packages.
"""

import shutil
import sys
from pathlib import Path

FOR_COMPILERS = (".h", ".pxd", ".pyi")
FOR_C = "libonnxruntime.so.*"
TOOLS = ("quantization", "tools", "transformers")
IDENTITY = "sts"  # how a role is taken where the environment says so, as in EKS


def slim(packages: Path, services: set[str]) -> None:
    """Delete it; FileNotFoundError where a package no longer looks as it did, or a service is unknown."""
    for folder in sorted(packages.rglob("tests")):
        if folder.is_dir():
            shutil.rmtree(folder)
    for file in list(packages.rglob("*")):
        if file.suffix in FOR_COMPILERS and file.is_file():
            file.unlink()
    onnxruntime = packages / "onnxruntime"
    if onnxruntime.is_dir():
        for name in TOOLS:
            shutil.rmtree(onnxruntime / name)
        libraries = list((onnxruntime / "capi").glob(FOR_C))
        if not libraries:
            raise FileNotFoundError(f"onnxruntime has no {FOR_C} any more: look what it brings instead")
        for file in libraries:
            file.unlink()
    kept = {packages / "botocore/data" / name for name in services | {IDENTITY}}
    if unknown := sorted(folder.name for folder in kept if not folder.is_dir()):
        raise FileNotFoundError(f"botocore knows no service {', '.join(unknown)}")
    for folder in (packages / "botocore/data").iterdir():
        if folder.is_dir() and folder not in kept:
            shutil.rmtree(folder)


if __name__ == "__main__":
    slim(Path(sys.argv[1]), set(sys.argv[2:]))
