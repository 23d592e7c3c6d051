"""Each way of serving a model, and the process in which it is up: one of its own, in its own environment."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

import processor

HERE = Path(__file__).resolve().parent
PIPELINES = (1, 32)  # batch sizes
LINES = 12  # of a peer that failed


class Way(NamedTuple):
    """How a peer is asked: its environment, its script here, its model, and the packages without which it cannot serve.

    `batches` are the sizes that it is given many texts in, 0 where it chooses. A slow one reads a part of the texts.
    """

    key: str
    name: str
    environment: str
    script: str
    how: str
    packages: tuple[str, ...]
    file: str  # of the weights
    batches: tuple[int, ...] = (0,)
    slow: bool = False
    hub: bool = False  # asks for the hub's client when it is imported


OWN = Way("retrue", "retrue", ".venv", "retrue", "", ("numpy", "onnxruntime", "tokenizers"), "weights.bin")
PIPELINE = Way(
    "pipeline", "transformers pipeline, fp32", ".venv", "transformers", "float32", ("torch", "transformers"),
    "model.safetensors", PIPELINES, slow=True, hub=True,
)  # fmt: skip
BF16 = PIPELINE._replace(key="bf16", name="transformers pipeline, bf16", how="bfloat16", batches=(1,))
AS_INTEL = PIPELINE._replace(key="mkl", name="transformers pipeline, fp32, MKL as on Intel", batches=(1,))
OPTIMUM = Way(
    "optimum", "optimum ONNX, fp32", ".venv-bench-optimum", "optimum", "",
    ("torch", "transformers", "optimum-onnx", "onnxruntime"), "model.onnx", (1,), slow=True, hub=True,
)  # fmt: skip
PLAIN = Way("onnxruntime", "onnxruntime, int8", ".venv", "onnxruntime", "", OWN.packages, "model_quantized.onnx")
OPENVINO = Way(
    "openvino", "OpenVINO, int8", ".venv-bench-openvino", "openvino", "", ("numpy", "openvino", "tokenizers"),
    "model.bin",
)  # fmt: skip
CTRANSLATE2 = Way(
    "ctranslate2", "CTranslate2, int8", ".venv-bench-ctranslate2", "ctranslate2", "",
    ("numpy", "ctranslate2", "tokenizers"), "model.bin", slow=True,
)  # fmt: skip
WAYS = (OWN, PIPELINE, AS_INTEL, BF16, OPTIMUM, PLAIN, OPENVINO, CTRANSLATE2)
INT8 = (OWN, PLAIN, OPENVINO, CTRANSLATE2)


class Peer:
    """A way of serving that is up; leaving it ends the process."""

    def __init__(self, way: Way, folder: Path, scratch: Path, *, threads: int = 1, group: Path | None = None) -> None:
        self.way = way
        self.began = time.monotonic()
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        alone = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        silent = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
        preload = {"LD_PRELOAD": str(processor.as_on_intel(scratch))} if way.key == AS_INTEL.key else {}
        python = HERE.parent / way.environment / "bin/python"
        command = [python, HERE / f"peers/{way.script}_serving.py", "serve", folder, way.how, str(threads)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True,
            env={**os.environ, **alone, **silent, **preload},
        )  # fmt: skip
        if group:
            group.write_text(str(self.process.pid))

    def ask(self, do: str, **job: Any) -> dict[str, Any]:
        """What it answers; where it fails, the benchmark ends with its last lines."""
        assert self.process.stdin
        assert self.process.stdout
        try:
            self.process.stdin.write(json.dumps({"do": do, **job}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # and so it says nothing either
        for line in self.process.stdout:
            if line.startswith("{"):
                said: dict[str, Any] = json.loads(line)
                return said
        self.process.wait()
        self.errors.seek(0)
        lines = self.errors.read().strip().splitlines()[-LINES:]
        sys.exit("\n".join([f"{self.way.name} failed with exit status {self.process.returncode}:", *lines]))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stdin.close()  # type: ignore[union-attr]
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()  # type: ignore[union-attr]
        self.errors.close()


@contextmanager
def up(ways: Sequence[Way], folders: Mapping[str, Path], scratch: Path) -> Iterator[list[Peer]]:
    """All ways at once."""
    with ExitStack() as stack:
        yield [stack.enter_context(Peer(way, folders[way.script], scratch)) for way in ways]
