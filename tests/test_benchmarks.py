"""The benchmarks' page, and the benchmarks themselves as far as a minute goes."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

PROJECT = Path(__file__).resolve().parents[1]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark of replay, imported as its own folder would."""
    monkeypatch.syspath_prepend(PROJECT / "benchmarks")
    for name in ("page", "replay"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module("replay")


@pytest.fixture
def written(tmp_path: Path) -> Path:
    page = tmp_path / "page.md"
    page.write_text("# One\n\n<!-- a -->\nold\n<!-- /a -->\n\n<!-- b -->\nkept\n<!-- /b -->\n")
    return page


def test_a_result_replaces_the_one_before_it_and_nothing_else(benchmark: ModuleType, written: Path) -> None:
    for text in ("first\n", "\nsecond, with \\1"):
        benchmark.page.put("a", text, written)
    assert written.read_text() == (
        "# One\n\n<!-- a -->\nsecond, with \\1\n<!-- /a -->\n\n<!-- b -->\nkept\n<!-- /b -->\n"
    )


def test_a_page_without_the_marks_is_left_alone(benchmark: ModuleType, written: Path) -> None:
    before = written.read_text()
    with pytest.raises(ValueError, match="lacks <!-- c --> or <!-- /c -->: write both where"):
        benchmark.page.put("c", "text", written)
    assert written.read_text() == before


def test_the_page_names_command_processor_and_packages(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/benchmarks/replay.py", "--seeds", "2"])
    told = benchmark.page.made_by()
    assert told.startswith("```sh\npython benchmarks/replay.py --seeds 2\n```\n")
    assert " cores, " in told
    assert "torch 2." in told


def test_replay_is_measured_from_the_first_row_to_the_page(
    benchmark: ModuleType, real_data: Path, tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "benchmarks.md"
    page.write_bytes((PROJECT / "docs/benchmarks.md").read_bytes())
    monkeypatch.setattr(benchmark.page, "PAGE", page)
    monkeypatch.setenv("RETRUE_DATA", str(real_data))
    sizes = "--old-rows 40 --new-rows 20 --test-rows 20 --epochs 1 --max-tokens 16 --seeds 1"
    monkeypatch.setattr(sys, "argv", ["replay.py", *sizes.split(), "--encoder", str(tiny_encoder)])
    benchmark.main()
    own = page.read_text().partition("<!-- replay -->")[2].partition("<!-- /replay -->")[0]
    lines = [line.split(" | ") for line in own.split("\n") if line.startswith("| ")]
    shares = {line[0].removeprefix("| "): line[1] for line in lines[2:]}
    assert shares == {
        "never retrained": "no new rows", "0 %": "0 %", "25 %": "25 %", "50 %": "50 %", "75 %": "75 %",
        "as they come": "67 %",
    }  # fmt: skip
    assert "40 old and 20 new rows to train on" in own
    assert "20 films, 10 kitchen, 10 tweets" in own


def test_no_row_is_trained_on_and_tested(
    benchmark: ModuleType, real_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["replay.py", *["--old-rows", "400", "--new-rows", "1200", "--test-rows", "200"]])
    old, new, validation, tests = benchmark.reviews(real_data, benchmark.arguments())
    every = [row.text for part in (old, new, validation, *tests.values()) for row in part]
    assert len(every) == len(set(every))
    assert [len(part) for part in (old, validation, *tests.values())] == [400, 40, 200, 100, 100]
    assert {row.source for row in new} == {"feedback"}
    for part in (old, new, *tests.values()):
        assert sum(row.label == "positive" for row in part) * 2 == len(part)


def test_the_script_for_gpus_runs_dry_on_a_cpu(real_data: Path, tiny_encoder: Path) -> None:
    environ = os.environ | {"PYTHON": sys.executable, "ENCODER": str(tiny_encoder), "RETRUE_DATA": str(real_data)}
    done = subprocess.run(
        ["/bin/bash", str(PROJECT / "benchmarks/gpu.sh"), "--dry-run"],
        env=environ, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3_000:]
    alone, together = (json.loads(line) for line in done.stdout.splitlines())
    assert (alone["device"].split(" \u00d7")[0], together["device"].split(" \u00d7")[0]) == ("cpu, 1", "cpu, 2")
    assert alone["rows"] == together["rows"] == 64
    assert alone["tflops"] > 0
    assert 0 <= alone["low"] <= alone["accuracy"] <= alone["high"] <= 1


def test_the_script_for_gpus_says_what_an_interpreter_lacks(real_data: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')  # without any package
    bare.chmod(0o755)
    environ = os.environ | {"PYTHON": str(bare), "RETRUE_DATA": str(real_data)}
    command = ["/bin/bash", str(PROJECT / "benchmarks/gpu.sh")]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "lacks torch transformers tokenizers" in done.stderr


def test_load_is_measured_from_the_server_to_the_page(tiny_model: Path, tmp_path: Path) -> None:
    page = tmp_path / "benchmarks.md"
    page.write_text("<!-- load -->\n<!-- /load -->\n")
    words = ["--model", tiny_model, "--requests", "8", "--tiny", "200", "--page", page]
    subprocess.run([sys.executable, PROJECT / "benchmarks/load.py", *words], check=True, timeout=120)
    told = page.read_text()
    assert told.count("\n| a review of 100 words | ") == told.count("\n| one word | ") == 4
    assert "\n| 200 | " in told
