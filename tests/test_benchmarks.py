"""The benchmarks' page, and the benchmarks themselves as far as a minute goes."""

import importlib
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
    lines = [line.split(" | ") for line in page.read_text().split("\n") if line.startswith("| ")]
    shares = {line[0].removeprefix("| "): line[1] for line in lines[2:]}
    assert shares == {
        "never retrained": "no new rows", "0 %": "0 %", "25 %": "25 %", "50 %": "50 %", "75 %": "75 %",
        "as they come": "67 %",
    }  # fmt: skip
    assert "40 old and 20 new rows to train on" in page.read_text()
    assert "20 films, 10 kitchen, 10 tweets" in page.read_text()


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
