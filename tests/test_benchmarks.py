"""The benchmarks' page, and the benchmarks themselves as far as a minute goes."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

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
    words = ["--model", tiny_model, "--requests", "8", "--tiny", "200", "--no-image", "--page", page]
    subprocess.run([sys.executable, PROJECT / "benchmarks/load.py", *words], check=True, timeout=120)
    told = page.read_text()
    assert told.count("\n| a review of 100 words | ") == told.count("\n| one word | ") == 4
    assert "\n| 200 | " in told


def test_the_price_of_a_size_is_its_memory_for_the_time_and_the_request(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(PROJECT / "benchmarks")
    for name in ("page", "fullsize", "service", "sizing"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    sizing = importlib.import_module("sizing")
    monkeypatch.setattr(sizing.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(sizing, "PICTURE", tmp_path / "sizing.svg")
    # Half as long with twice the memory, up to one CPU; and the CPU seconds of a text grow with its tokens.
    taken = {
        (size, length): [length / 2_000 / min(1, size / 1769)] * 4
        for size in sizing.sizes()
        for length in sizing.LENGTHS
    }
    assert max(sizing.sizes()) == 3_538
    starts = [{"import numpy": 70.0, "tokenizer and session": 150.0}] * 3
    told = sizing.tables(taken, dict.fromkeys(sizing.sizes(), 200.0), starts)
    assert "| 1,024 | 0.58 | 1 | 200 | 28 / 28 ms, $0.66 | 111 / 111 ms, $2.04 |" in told
    assert "| 3,538 | 2.00 | 2 | 200 | 16 / 16 ms, $1.12 |" in told
    assert "| import numpy | 70 | 90 | kept |\n| tokenizer and session | 150 | 130 | exceeded |" in told
    assert told.endswith("| **all** | **220** | 220 |  |")
    sizing.draw(taken)
    assert "A million texts, dollars" in (tmp_path / "sizing.svg").read_text()


@pytest.fixture
def serving(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark of serving, imported as its own folder would."""
    monkeypatch.syspath_prepend(PROJECT / "benchmarks")
    for name in ("page", "fullsize", "processor", "ways", "standings", "serve"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module("serve")


def measured(serving: ModuleType, ways: list[Any], *, amx: bool) -> Any:
    """What a run would find where each way takes a millisecond more for a text than the one before it."""
    single = {
        (way.name, do, length): [0.001 * (place + 1)] * 3
        for place, way in enumerate(ways)
        for do in ("one", "bare")
        for length in serving.LENGTHS
    }
    rates = {
        (way.name, batch, texts): [100 / (place + 1)] * 3
        for place, way in enumerate(ways)
        for batch in way.batches
        for texts in ("reviews", "tweets")
    }
    return serving.Found(
        single=single,
        with_amx=single if amx else {},
        peaks=[serving.Peak(900, 240)] * 3 if amx else [],
        rates=rates,
        starts={way.name: [{"cpu": 140, "wall": 150, "megabytes": 130}] for way in ways},
        sizes={way.name: (68, 136) for way in ways},
        quota={"retrue, 1 thread": [0.004] * 95 + [0.006] * 5} if amx else {},
        flips={"reviews": {way.name: (0.01, 0.8) for way in ways}},
    )


def test_the_report_of_serving_holds_ours_to_the_bars(serving: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    ways = list(serving.WAYS)
    monkeypatch.setattr(sys, "argv", ["serve.py"])
    told = serving.standings.report(serving.arguments(), ways, measured(serving, ways, amx=True))
    lines = dict(line.strip("| ").split(" | ", 1) for line in told.split("\n") if line.startswith("| "))
    assert lines["one text of 128 tokens, against onnxruntime, int8"] == "at least 1.30× | 6.00× | reached"
    assert lines["reviews, against transformers pipeline, fp32 in batches of 32"] == "at least 14.0× | 2.0× | missed"
    assert lines["process start to first answer, CPU"] == "at most 150 ms | 140 ms | reached"
    assert lines["resident at most by then"] == "at most 120 MB | 130 MB | missed"
    assert "With AMX" in told
    assert "| retrue, 1 thread | 4.0 |" in told
    assert lines["labels of reviews that int8 changes"] == "at most 0.7% | 1.0% | missed"
    assert lines["sentences under a quota of one CPU, p95 over p50"] == "at most 1.6 | 1.0 | reached"


def test_what_was_not_measured_is_said(serving: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    ways = [serving.OWN, serving.PLAIN]
    monkeypatch.setattr(sys, "argv", ["serve.py", "--only", "onnxruntime"])
    told = serving.standings.report(serving.arguments(), ways, measured(serving, ways, amx=False))
    assert "Without a C compiler" in told
    assert "this machine grants no control group" in told
    assert "share of the int8 peak" not in told
    assert "AMX" not in told
    assert "pipeline" not in told


def test_the_floor_of_a_text_is_that_of_its_arithmetic(serving: ModuleType) -> None:
    # 5 layers whole and keys and values of the last, for 128 tokens; the rest of the last for one.
    linear = 2 * (128 * (5 * 7_077_888 + 1_179_648) + 5_898_240)
    floor, peak = serving.standings.floor, serving.Peak
    assert floor(128, peak(1, float("inf"))) == pytest.approx(linear / 1e9)
    assert floor(128, peak(float("inf"), 1)) == pytest.approx(4 * 768 * (5 * 128**2 + 128) / 1e9)


def test_a_part_of_the_texts_is_as_long_as_all_of_them(serving: ModuleType) -> None:
    texts = ["x" * length for length in range(1, 1_001)]
    few = serving.spread(texts, 10)
    assert len(few) == 10
    assert sum(map(len, few)) / 10 == pytest.approx(sum(map(len, texts)) / 1_000, rel=0.01)
    assert serving.spread(texts, 1_000) == texts


def test_every_peer_of_serving_has_a_script_and_an_environment(serving: ModuleType) -> None:
    rules = (PROJECT / "Makefile").read_text()
    for way in serving.WAYS:
        assert (PROJECT / f"benchmarks/peers/{way.script}_serving.py").is_file()
        assert f"{way.environment}/ready" in rules
        if way.environment != ".venv":
            assert (PROJECT / f"locks/{way.environment.removeprefix('.venv-')}.txt").is_file()


def test_the_peak_of_a_processor_is_measured(serving: ModuleType, tmp_path: Path) -> None:
    if (peak := serving.processor.peak(tmp_path)) is None:
        pytest.skip("no C compiler for x86")
    assert peak.int8 > peak.fp32 > 1


def test_a_peer_that_fails_ends_the_benchmark_with_its_last_lines(serving: ModuleType, tmp_path: Path) -> None:
    with (
        serving.Peer(serving.OWN, tmp_path, tmp_path) as peer,
        pytest.raises(SystemExit, match=r"(?s)retrue failed with exit status 1:.*ModelRefused"),
    ):
        peer.ask("one", texts=["a text"])


def test_the_picture_of_serving_has_a_bar_for_each_way(
    serving: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving.standings, "PICTURE", tmp_path / "serving.svg")
    ways = list(serving.WAYS)
    serving.standings.draw(ways, measured(serving, ways, amx=False))
    drawn = (tmp_path / "serving.svg").read_text()
    assert all(way.name in drawn for way in ways)


def test_the_page_of_benchmarks_holds_the_tables_of_serving() -> None:
    page = (PROJECT / "docs/benchmarks.md").read_text()
    own = page.partition("<!-- serve -->")[2].partition("<!-- /serve -->")[0]
    assert "python benchmarks/serve.py" in own
    assert "| process start to first answer, CPU | at most 150 ms |" in own
    assert (PROJECT / "docs/serving.svg").is_file()
