"""The command line: its help, its exit codes, and what it says when something is wrong."""

import csv
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from retrue import artifact, cli, dataset
from retrue.dataset import Example
from retrue.errors import TrainingFailed

PROJECT = Path(__file__).resolve().parents[1]
GROUP: Any = typer.main.get_command(cli.app)
COMMANDS = sorted(GROUP.commands)
PAGES = [PROJECT / "README.md", PROJECT / "CONTRIBUTING.md", *sorted((PROJECT / "docs").rglob("*.md"))]
ENDS_A_COMMAND = {"|", "||", "&&", ";", ">", ">>", "<", "2>"}


@dataclass
class Told:
    code: int
    out: str
    err: str


Run = Callable[..., Told]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command line as the installed program does, with a home and a current folder of its own."""
    monkeypatch.setenv("RETRUE_HOME", str(tmp_path / "home"))
    for name in ("RETRUE_STACK", "MODEL_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> Told:
        monkeypatch.setattr(sys, "argv", ["retrue", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        told = capsys.readouterr()
        return Told(int(ended.value.code or 0), told.out, " ".join(told.err.split()))

    return call


def write(path: Path, header: list[str], rows: list[tuple[str, ...]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def reviews(path: Path, *columns: str) -> Path:
    rows = [
        (f"film number {n}, which I {verb}", kind) for n in range(30) for verb, kind in (("hated", "0"), ("liked", "1"))
    ]
    return write(path, list(columns or ("text", "label")), [*rows, rows[0]])


def parse(words: list[str]) -> str:
    """The command that words name, after all of its options and arguments were read as on the command line."""
    with GROUP.make_context("retrue", list(words)) as context:
        name, command, rest = GROUP.resolve_command(context, [*context._protected_args, *context.args])
        command.make_context(name, rest, parent=context)
        return str(name)


def examples(command: str) -> list[list[str]]:
    text = GROUP.commands[command].epilog.removeprefix("Example: ")
    return [shlex.split(line) for line in re.split(r"\s+or:\s+", text)]


def shown(page: Path) -> Iterator[list[str]]:
    """The words of each line in a page's code blocks that runs retrue or make."""
    for block in re.findall(r"^```\w*\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            text = line.strip().removeprefix("$ ")
            if re.match(r"(\.venv/bin/)?retrue |make ", text):
                words = shlex.split(text, comments=True)
                end = next((k for k, word in enumerate(words) if word in ENDS_A_COMMAND), len(words))
                yield words[:end]


def make_models(words: list[str], root: Path) -> None:
    """The folders that words name as models."""
    for option, value in pairwise(words):
        if option == "--model":
            (root / value).mkdir(parents=True, exist_ok=True)


# help
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(command: str) -> None:
    told = CliRunner().invoke(cli.app, [command, "--help"])
    assert told.exit_code == 0
    assert "Example: retrue " in " ".join(told.output.split())
    assert GROUP.commands[command].help


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_and_argument_explains_itself(command: str) -> None:
    silent = [parameter.name for parameter in GROUP.commands[command].params if not parameter.help]
    assert silent == []


@pytest.mark.parametrize("command", COMMANDS)
def test_an_example_can_be_typed_as_it_is(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for words in examples(command):
        for word in words:
            if word.endswith((".csv", ".yaml")):
                (tmp_path / word).touch()
        make_models(words, tmp_path)
        assert words[0] == "retrue"
        assert parse(words[1:]) == command


def test_an_example_with_an_option_that_does_not_exist_would_be_found() -> None:
    with pytest.raises(Exception, match="No such option: --colour"):
        parse(["status", "--colour"])
    with pytest.raises(Exception, match="No such command 'predicted'"):
        parse(["predicted"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(PROJECT).as_posix())
def test_the_pages_show_only_commands_that_exist(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    targets = set(re.findall(r"^([\w-]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE))
    for words in shown(page):
        for word in words:
            if re.search(r"\.(csv|gz|parquet|yaml)$", word):
                (tmp_path / word).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / word).touch()
        make_models(words, tmp_path)
        if words[0] == "make":
            assert {word for word in words[1:] if "=" not in word} <= targets, words
        else:
            assert "--help" in words or parse(words[1:]) in COMMANDS, words


def test_the_commands_that_errors_and_pages_advise_exist() -> None:
    advised: set[str] = set()
    for path in [
        *(PROJECT / "src").rglob("*.py"),
        *(PROJECT / "functions").rglob("*.py"),
        PROJECT / "template.yaml",
        *PAGES,
    ]:
        advised |= set(re.findall(r"`(?:\.venv/bin/)?retrue ([a-z]+)", path.read_text()))
    assert "up" in advised
    assert advised <= set(COMMANDS)


# exit codes
@pytest.mark.parametrize(
    "words",
    [
        (),
        ("predicted",),
        ("status", "--colour"),
        ("feedback",),
        ("feedback", "an-id"),
        ("feedback", "an-id", "positive", "--file", "labels.csv"),
        ("batch", "no-such-file.csv"),
        ("retrain", "--set", "epochs"),
        ("retrain", "--search", "random"),
        ("retrain", "--search", "bayes", "--space", "space.yaml"),
        ("train", "data", "--space", "space.yaml"),
        ("train", "data", "--search", "grid", "--space", "space.yaml", "--trials", "0"),
        ("promote", "3fa9c1d2b0e4"),
        ("promote", "3fa9c1d2b0e4", "--reason", " "),
        ("up", "--port", "0", "--parameter", "KeepText"),
        ("data", "reviews.csv", "--rename", "positive"),
        ("serve",),
        ("serve", "--model", "no-such-folder"),
    ],
)
def test_wrong_usage_ends_with_2(run: Run, words: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "labels.csv").touch()
    (tmp_path / "space.yaml").touch()
    told = run(*words)
    assert told.code == 2
    assert "Usage: " in told.out + told.err


@pytest.mark.parametrize(
    "words",
    [
        ("status",),
        ("status", "--json"),
        ("predict", "A warm film."),
        ("batch", "reviews.csv"),
        ("feedback", "an-id", "positive"),
        ("monitor",),
        ("retrain",),
        ("promote", "3fa9c1d2b0e4", "--reason", "the frozen rows are out of date"),
        ("rollback",),
        ("ledger",),
        ("worker",),
    ],
)
def test_a_stack_that_does_not_run_ends_with_1_and_the_remedy(run: Run, words: tuple[str, ...], tmp_path: Path) -> None:
    reviews(tmp_path / "reviews.csv")
    told = run(*words)
    assert (told.code, told.out) == (1, "")
    assert told.err == "error: the local stack does not run: run `retrue up`, or name a deployed one (--stack)"


def test_the_cost_of_a_month_is_told_in_parts_and_without_any_stack(run: Run) -> None:
    told = run("cost", "--json", "--rps", "10", "--set", "SignModels=true")
    bill = json.loads(told.out)
    assert (told.code, bill["dollars"]) == (0, pytest.approx(sum(line["dollars"] for line in bill["lines"]), abs=0.01))
    assert {line["what"] for line in bill["lines"]} > {"API Gateway", "keys"}
    assert "dollars a month" in run("cost").out
    wrong = run("cost", "--set", "SignedModels=true")
    assert (wrong.code, wrong.err) == (
        1,
        "error: the template has no parameter SignedModels: docs/deploy.md lists them",
    )


def test_an_error_reaches_the_shell_without_a_traceback(tmp_path: Path) -> None:
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "RETRUE_HOME": str(tmp_path)}
    words = [sys.executable, "-m", "retrue.cli", "status"]
    done = subprocess.run(words, env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: the local stack does not run: run `retrue up`")
    assert "Traceback" not in done.stderr


def test_a_process_id_of_somebody_else_is_not_taken_for_the_stack(run: Run, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    note = {"pid": os.getpid(), "endpoint_url": "http://127.0.0.1:1"}
    (tmp_path / "home/supervisor.json").write_text(json.dumps(note))
    assert "does not run" in run("status").err
    assert (run("down").code, run("down").err) == (0, "nothing was running")


def test_a_profile_that_does_not_exist_is_named(run: Run) -> None:
    told = run("--profile", "nobody", "--region", "eu-central-1", "status")
    assert (told.code, told.out) == (1, "")
    assert "nobody" in told.err


def test_an_address_where_nothing_answers_is_named(run: Run) -> None:
    told = run("--endpoint-url", "http://127.0.0.1:1", "ledger")
    assert (told.code, told.out) == (1, "")
    assert "http://127.0.0.1:1" in told.err


def test_logs_that_are_not_there_yet_are_an_error(run: Run) -> None:
    told = run("logs", "--no-follow")
    assert (told.code, told.err) == (1, "error: there are no logs yet: start the stack with `retrue up`")


def test_a_port_that_is_taken_is_told_before_anything_starts(run: Run, tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        told = run("up", "--port", str(port))
    assert told.code == 1
    assert f"port {port} of this machine is taken" in told.err
    assert "retrue up --port" in told.err
    assert not (tmp_path / "home").exists()


def test_a_port_that_is_taken_is_told_before_a_model_is_loaded(run: Run, tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        told = run("serve", "--model", str(tmp_path), "--port", str(port))
    assert told.code == 1
    assert told.err == f"error: port {port} of this machine is taken: choose another with `retrue serve --port`"


def test_erasing_keeps_the_encoders_only(run: Run, tmp_path: Path) -> None:
    for name in ("encoders", "cloud", "logs"):
        (tmp_path / "home" / name).mkdir(parents=True)
        (tmp_path / "home" / name / "file").touch()
    (tmp_path / "home/mlflow.db").touch()
    assert run("down").code == 0
    assert len(list((tmp_path / "home").iterdir())) == 4
    assert run("down", "--erase").code == 0
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["encoders"]


# data
def test_a_csv_becomes_a_dataset_and_json_tells_where(run: Run, tmp_path: Path) -> None:
    told = run("data", str(reviews(tmp_path / "films.csv")), "--rename", "0=bad", "--rename", "1=good", "--json")
    assert told.code == 0
    facts = json.loads(told.out)
    folder = Path(facts["folder"])
    assert folder.parent == tmp_path / "home/datasets"
    assert (facts["id"], facts["name"], facts["labels"]) == (folder.name, "films", ["bad", "good"])
    assert facts["dropped"]["duplicates"] == 1
    assert sum(sum(counts.values()) for counts in facts["counts"].values()) == 60
    assert {row.label for row in dataset.read(folder, "train")} == {"bad", "good"}


def test_the_same_csv_gives_the_same_dataset(run: Run, tmp_path: Path) -> None:
    path = str(reviews(tmp_path / "films.csv"))
    first, second = (json.loads(run("data", path, "--json").out) for _ in range(2))
    assert first == second


def test_columns_with_other_names_are_named_by_options(run: Run, tmp_path: Path) -> None:
    path = str(reviews(tmp_path / "films.csv", "body", "stars"))
    told = run("data", path, "--text", "body", "--label", "stars")
    assert told.code == 0
    assert "train" in told.out
    assert re.search("dataset [0-9a-f]{12} in .*; left out: 1 duplicates", told.err)
    wrong = run("data", path, "--text", "body")
    assert (wrong.code, wrong.out) == (1, "")
    assert wrong.err == "error: films.csv has no column label: name one of body, stars"


def test_a_file_of_its_own_for_testing_stays_whole(run: Run, tmp_path: Path) -> None:
    reviews(tmp_path / "films.csv")
    write(tmp_path / "new.csv", ["text", "label"], [(f"tale number {n}", str(n % 2)) for n in range(10)])
    told = run("data", "films.csv", "--test", "new.csv", "--json")
    assert json.loads(told.out)["counts"]["test"] == {"0": 5, "1": 5}


def test_an_error_about_data_tells_no_text(run: Run, tmp_path: Path) -> None:
    path = write(tmp_path / "secret.csv", ["text", "label"], [("my diagnosis", "0"), ("my address", "1")])
    told = run("data", str(path))
    assert (told.code, told.out) == (1, "")
    assert "give more rows" in told.err
    assert not re.search("diagnosis|address", told.err)


def test_a_source_that_is_not_there_is_named_with_those_that_are_known(run: Run) -> None:
    told = run("data", "films.tsv")
    assert told.code == 1
    assert "films.tsv" in told.err
    assert "imdb" in told.err


def test_a_dataset_is_prepared_even_where_no_stack_runs_to_use_it(run: Run, tmp_path: Path) -> None:
    told = run("data", str(reviews(tmp_path / "films.csv")), "--use")
    assert told.code == 1
    assert "retrue up" in told.err
    (folder,) = (tmp_path / "home/datasets").iterdir()
    assert dataset.read_manifest(folder).id == folder.name


# training without a stack
@pytest.fixture(scope="module")
def easy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared dataset in which one word is the label."""
    words = {"bad": "dull", "good": "wonderful"}
    rows = [Example(f"a {word} film number {n}", label) for n in range(150) for label, word in words.items()]
    return dataset.write(tmp_path_factory.mktemp("datasets"), {"train": rows}, name="easy", source="made for a test")


@pytest.fixture
def home(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of `run`, with the database that every test of MLflow shares, as its tables take long to make."""
    root = tmp_path / "home"
    root.mkdir()
    (root / "mlflow.db").symlink_to(tmp_path_factory.getbasetemp() / "mlflow.db")
    return root


def test_the_best_of_a_search_becomes_a_model_and_its_trials_are_in_mlflow(
    run: Run, home: Path, easy: Path, tiny_encoder: Path, tmp_path: Path
) -> None:
    (tmp_path / "space.yaml").write_text("{learning_rate: [5e-3, 1e-7, 2e-7], frozen_layers: [0, 9]}")
    search = ("--search", "grid", "--space", "space.yaml", "--trials", "6")
    words = ("train", str(easy), "--encoder", str(tiny_encoder), "--set", "epochs=3", "--set", "max_tokens=16")
    told = run(*words, *search, "--out", "made", "--json")
    assert told.code == 0, told.err
    facts = json.loads(told.out)
    assert (facts["folder"], facts["card"]) == ("made", "made/card.json")
    assert artifact.verify(tmp_path / "made") == facts["model"]
    card = artifact.read_card(tmp_path / "made")
    assert (card.settings["learning_rate"], card.settings["epochs"]) == (0.005, 3)
    assert facts["low"] < facts["accuracy"] <= facts["high"] <= 1
    assert facts["accuracy"] > 0.9
    states = Counter((trial["settings"]["frozen_layers"], trial["state"]) for trial in facts["trials"])
    assert states == {("0", "finished"): 2, ("0", "stopped early"): 1, ("9", "failed"): 3}
    assert "6 trials (6 to 33%, 2 to 100%)" in told.err
    assert "stopped early" in told.err
    assert "trial 03 failed: frozen_layers is 9, but the encoder has" in told.err
    assert list((home / "studies").iterdir()) == []

    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{home / 'mlflow.db'}")
    version = client.get_model_version("retrue-train", facts["mlflow"].rsplit("/", 1)[1])
    assert version.source == (tmp_path / "made").as_uri()
    assert version.tags["promoted"] == "false"
    parent = client.get_run(version.run_id)
    mine = f"tags.mlflow.parentRunId = '{version.run_id}'"
    children = client.search_runs([parent.info.experiment_id], mine)
    assert sorted(child.info.status for child in children) == [*["FAILED"] * 3, *["FINISHED"] * 2, "KILLED"]
    artefacts = {file.path for file in client.list_artifacts(version.run_id)}
    assert artefacts == {artifact.CARD, *artifact.REPORT}
    assert (home / "mlflow/retrue-train").is_dir()
    for child in (child for child in children if child.info.status == "FINISHED"):
        assert len(client.get_metric_history(child.info.run_id, "evaluation.accuracy")) == 3

    # The folder stays as it is.
    again = run(*words, *search, "--out", "made")
    assert (again.code, again.err) == (1, "error: made is there already: name a folder that is not")


def test_a_single_model_is_trained_without_a_search(
    run: Run, home: Path, easy: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from retrue.training import study

    wanted: list[Any] = []

    def export(checkpoint: Path, data: Path, result: Any, out: Path, created: str) -> Path:
        wanted.append(result)
        raise TrainingFailed("the exported graph's logits differ")

    # A dataset is named by its id too. The export has its own tests; here it fails, and the training is not lost.
    shutil.copytree(easy, home / "datasets" / easy.name)
    monkeypatch.setattr(study, "export", export)
    words = ("train", easy.name, "--encoder", str(tiny_encoder), "--set", "epochs=1", "--set", "max_tokens=16")
    told = run(*words)
    assert (told.code, told.out) == (1, "")
    assert "logits differ" in told.err
    assert "trials" not in told.err
    assert run(*words).code == 1
    assert wanted[0] == wanted[1]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{learning_rate: [1e-4", "space.yaml is neither YAML nor JSON"),
        ("[1, 2]", "the space is not a mapping"),
        ("{rate: [1], epochs: [few]}", "rate cannot be searched: there are learning_rate,"),
        ("{batch_size: [0]}", "batch_size must be at least 1"),
        ("{epochs: [1, 2, 3]}", "the grid has 3 points and 2 trials are allowed"),
    ],
)
def test_a_space_that_cannot_be_searched_is_told_before_anything_is_trained(
    run: Run, easy: Path, tmp_path: Path, text: str, reason: str
) -> None:
    (tmp_path / "space.yaml").write_text(text)
    told = run("train", str(easy), "--search", "grid", "--space", "space.yaml", "--trials", "2")
    assert (told.code, told.out) == (1, "")
    assert reason in told.err
    assert not (tmp_path / "home" / "studies").exists()


def test_a_dataset_that_is_not_there_is_named(run: Run) -> None:
    told = run("train", "0123456789ab")
    assert told.code == 1
    assert "0123456789ab holds no manifest.json" in told.err
