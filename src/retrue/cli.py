"""Keep a text classifier true: the stack on this machine, or with --stack and --profile a deployed one.

Exit codes: 0 done; 1 an error, with what to do about it; 2 wrong usage; 3 the workflow ended without a promotion.
"""

import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import webbrowser
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from botocore.exceptions import BotoCoreError, ClientError
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from retrue import artifact, cost, dataset, lake, page, promotion, registry, report, search
from retrue.errors import BadInput, RetrueError, StackError
from retrue.local import localize, machine
from retrue.local.home import STACK, Home, session, stop
from retrue.records import iso
from retrue.stack import Session, Stack
from retrue.telemetry import Metric
from retrue.terminal import ask, drop, err, follow, steps, stoppable, trials_shown
from retrue.training.settings import DEFAULT
from retrue.workflow import Activity

PROJECT = Path(__file__).resolve().parents[2]
NOT_PROMOTED = 3
OWN = "train"  # in MLflow, the models that a person trains here and no gate judges
FIRST = {
    "epochs": "1",
    "max_tokens": "96",
    "frozen_layers": "3",
    "learning_rate": "2e-4",
    "batch_size": "16",
    "max_rows": "2000",
}

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False, help=__doc__)
out = Console()

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Follow it to its end.")]
Reason = Annotated[str, typer.Option("--reason", help="Goes into the ledger.")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="Training setting, name=value.")]
Kind = Annotated[
    Literal["grid", "random"] | None, typer.Option("--search", help="Try several settings; needs --space.")
]
Space = Annotated[
    Path | None,
    typer.Option(
        exists=True,
        dir_okay=False,
        help="What a search tries, as YAML or JSON: {epochs: \\[1, 2], learning_rate: {loguniform: \\[1e-5, 1e-3]}}; "
        "uniform and randint are ranges too.",
    ),
]
Trials = Annotated[int, typer.Option(min=1, help="Most settings that a search tries.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the random search.")]


@dataclass
class Target:
    """What the options before the command say about where the stack is."""

    home: Home
    name: str
    endpoint: str
    profile: str
    region: str
    token: str

    def stack(self) -> Stack:
        """The stack meant: the local one, unless an option says otherwise."""
        token = self.token or None
        if self.endpoint:
            return Stack(session(self.endpoint, token), self.name)
        if self.profile or self.region or self.name != STACK:
            return Stack(Session(profile=self.profile or None, region=self.region or None, token=token), self.name)
        running = self.home.endpoint
        if running is None:
            raise StackError("the local stack does not run: run `retrue up`, or name a deployed one (--stack)")
        return Stack(session(running, token), self.name)


@app.callback()
def options(
    context: typer.Context,
    stack: Annotated[str, typer.Option(envvar="RETRUE_STACK", help="Name of the CloudFormation stack.")] = STACK,
    profile: Annotated[str, typer.Option(help="AWS profile, for a deployed stack.")] = "",
    region: Annotated[str, typer.Option(help="AWS region, for a deployed stack.")] = "",
    token: Annotated[str, typer.Option(envvar="RETRUE_TOKEN", help="Token, for an API that asks for one.")] = "",
    endpoint_url: Annotated[str, typer.Option(help="A local cloud other than the one started here.")] = "",
    home: Annotated[
        Path, typer.Option(envvar="RETRUE_HOME", help="State of the local stack.", show_default=".retrue")
    ] = PROJECT / ".retrue",
) -> None:
    context.obj = Target(Home(home.resolve()), stack, endpoint_url, profile, region, token)


def target(context: typer.Context) -> Target:
    found: Target = context.obj
    return found


def show(value: Any) -> None:
    """JSON for programs, on standard output and unadorned."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=1) + "\n")


# the stack on this machine
@app.command(epilog="Example: retrue up")
def up(
    context: typer.Context,
    port: Annotated[int, typer.Option(help="Port of the local cloud; 0 picks a free one.")] = 4566,
    cloud: Annotated[Path, typer.Option(help="Python of the local cloud's environment.")] = PROJECT
    / ".venv-cloud/bin/python",
    parameter: Annotated[list[str] | None, typer.Option(help="Template parameter, Name=Value.")] = None,
    model: Annotated[bool, typer.Option("--model/--no-model", help="Train a first model where none serves.")] = True,
) -> None:
    """Start the whole stack on this machine, with a first model; safe to repeat."""
    began = time.monotonic()
    where, parameters = target(context).home, _pairs(parameter)
    if where.supervisor() is None and not _is_free(port):
        raise StackError(f"port {port} of this machine is taken: choose another with `retrue up --port`")
    if port == 0:
        port = _free_port()
    with steps() as tell:
        stack = machine.up(where, PROJECT, cloud.absolute(), port, parameters, tell)
        if model:
            machine.provide(where, stack, tell)
    if model and not machine.has_model(stack):
        running = stack.workflow.oldest_running()
        follow(stack, running or ask(stack, {"reason": "first model", "settings": FIRST}))
    with steps() as tell:
        if machine.has_model(stack):
            tell("asking the first question")
            answer = stack.http("POST", "/v1/predict", {"inputs": "A warm, funny film with a wonderful cast."})
            tell("checking with the monitor")
            stack.check(request=False)
            _welcome(where, stack, answer["predictions"][0], time.monotonic() - began)


@app.command(epilog="Example: retrue down --erase")
def down(
    context: typer.Context,
    erase: Annotated[bool, typer.Option(help="Also delete its data, except the fetched encoders.")] = False,
) -> None:
    """Stop the local stack; its data stays unless told otherwise."""
    where = target(context).home
    err.print("stopped" if stop(where) else "nothing was running")
    if erase:
        for path in where.root.glob("*"):
            if path != where.encoders:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


@app.command(epilog="Example: retrue logs --no-follow")
def logs(context: typer.Context, follow: Annotated[bool, typer.Option(help="Go on as lines come.")] = True) -> None:
    """Show the logs of the local stack."""
    files = sorted(target(context).home.logs.glob("*.log"))
    if not files:
        raise StackError("there are no logs yet: start the stack with `retrue up`")
    words = ["tail", "-n", "40", *(["-F"] if follow else []), *map(str, files)]
    os.execvp("tail", words)  # noqa: S606, S607 - tail already does this well


@app.command(epilog="Example: retrue status --json")
def status(
    context: typer.Context,
    as_json: AsJson = False,
) -> None:
    """Where the stack is and what serves in it."""
    facts = target(context).stack().status()
    if as_json:
        show(facts)
        return
    table = Table(show_header=False, box=None)
    for key, value in facts.items():
        table.add_row(key, "-" if value is None else str(value))
    out.print(table)


# the doors
@app.command(epilog='Example: retrue predict "A warm, funny film." "I left after ten minutes."')
def predict(
    context: typer.Context,
    texts: Annotated[list[str], typer.Argument(help="Texts to classify; - reads one a line from standard input.")],
    as_json: AsJson = False,
) -> None:
    """Classify texts over HTTP."""
    inputs = [line.rstrip("\n") for line in sys.stdin if line.strip()] if texts == ["-"] else texts
    answer = target(context).stack().http("POST", "/v1/predict", {"inputs": inputs})
    if as_json:
        show(answer)
        return
    table = Table("label", "score", "tokens", "prediction id")
    for found in answer["predictions"]:
        tokens = f"{found['tokens']}{' (cut)' if found['truncated'] else ''}"
        table.add_row(found["label"], f"{found['score']:.3f}", tokens, found["id"])
    out.print(table)


@app.command(epilog="Example: retrue batch reviews.csv")
def batch(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A .csv or .csv.gz with a column `text`.")],
    to: Annotated[Path | None, typer.Option(help="Folder for the results; beside the file unless given.")] = None,
    wait: Wait = True,
    as_json: AsJson = False,
) -> None:
    """Classify the rows of a CSV: drop it in the bucket, wait, and fetch results and rejected rows."""
    stack = target(context).stack()
    job = drop(stack, file, lake.INCOMING, wait)
    paths: dict[str, str] = {}
    if wait and job.get("results"):
        for kind in ("results", "rejects"):
            _, key = lake.split_uri(job[kind])
            path = (to or file.parent) / f"{file.name.split('.')[0]}.{kind}.csv"
            stack.lake.download(key, path)
            paths[kind] = str(path)
    _tell_job(job | paths, as_json)


@app.command(epilog="Example: retrue feedback 019a… negative    or: retrue feedback --file labels.csv")
def feedback(
    context: typer.Context,
    id: Annotated[str, typer.Argument(help="Id of the prediction.")] = "",
    label: Annotated[str, typer.Argument(help="What it should have said.")] = "",
    file: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="A CSV with columns id,label.")] = None,
    wait: Wait = True,
    as_json: AsJson = False,
) -> None:
    """Tell the truth about one prediction, or about many in a CSV."""
    if bool(file) == bool(id and label):
        raise typer.BadParameter("give either an id and a label, or --file")
    stack = target(context).stack()
    if file:
        _tell_job(drop(stack, file, lake.LABELS, wait), as_json)
        return
    answer = stack.http("POST", "/v1/feedback", {"id": id, "label": label})
    show(answer) if as_json else err.print(f"noted: {label}")


@app.command(epilog="Example: retrue serve --model .retrue/models/3fa9c1d2b0e4")
def serve(
    model: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="Model folder; else MODEL_URI and BUCKET say which."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at; whoever reaches it needs no key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 picks a free one.")] = 8080,
    program: Annotated[Path, typer.Option(help="The server.")] = PROJECT / "functions/predict/server.py",
) -> None:
    """Serve the HTTP interface on this machine without Lambda; with a model folder alone nothing is kept."""
    environ = dict(os.environ)
    if model is not None:
        environ["MODEL_URI"] = model.resolve().as_uri()
    elif "MODEL_URI" not in environ:
        raise typer.BadParameter("name a model folder with --model, or set MODEL_URI and BUCKET as Lambda has them")
    if port and not _is_free(port, host):
        raise StackError(f"port {port} of this machine is taken: choose another with `retrue serve --port`")
    words = [sys.executable, str(program), "--host", host, "--port", str(port)]
    os.execve(sys.executable, words, environ)  # noqa: S606 - signals reach the server itself


# watching and retraining
@app.command(epilog="Example: retrue monitor --open    or: retrue monitor --reference old.csv --current new.csv")
def monitor(
    context: typer.Context,
    request: Annotated[bool, typer.Option("--request/--dry-run", help="Whether it may tell anybody.")] = True,
    reference: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Compare two files here: the usual texts.")
    ] = None,
    current: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="The new texts.")] = None,
    model: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="Model folder to read them with; else the base encoder."),
    ] = None,
    group: Annotated[
        str, typer.Option(help="Column of --reference that says what belongs together, as one film or customer.")
    ] = "",
    alpha: Annotated[float, typer.Option(min=1e-9, max=0.5, help="False-alarm rate of comparing two files.")] = 0.01,
    most: Annotated[int, typer.Option(min=20, help="Texts of a file to read at most; drawn by lot.")] = 5_000,
    to: Annotated[Path | None, typer.Option("--out", help="Where the page goes; in the home unless given.")] = None,
    show_page: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    as_json: AsJson = False,
) -> None:
    """Let the monitor look now, or compare two CSV files of texts without any stack."""
    if (reference is None) != (current is None):
        raise typer.BadParameter("comparing two files needs both --reference and --current")
    where = target(context).home
    path = to or where.root / "report.html"
    if reference and current:
        found = _compare(where, (reference, current), model, group, alpha, most)
        html = page.render(found, []).encode()
    else:
        stack = target(context).stack()
        found = stack.check(request)
        html = stack.lake.get(lake.split_uri(found["page"])[1])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(html)
    if as_json:
        show(found)
    else:
        table = Table(show_header=False, box=None)
        for name, value in report.lines(found):
            table.add_row(name, value)
        out.print(table)
        err.print(f"the report: {path}")
    if show_page:
        webbrowser.open(path.resolve().as_uri())


@app.command(epilog='Example: retrue retrain --reason "new labels" --set epochs=3')
def retrain(
    context: typer.Context,
    reason: Reason = "a person asked",
    data: Annotated[str, typer.Option("--dataset", help="Id of a dataset in the lake; else the one in use.")] = "",
    set: Settings = None,
    kind: Kind = None,
    space: Space = None,
    trials: Trials = 9,
    seed: Seed = 0,
    wait: Wait = True,
    as_json: AsJson = False,
) -> None:
    """Ask for a retraining, and follow it to the gate's verdict."""
    detail: dict[str, Any] = {"reason": reason, "settings": _pairs(set), **({"dataset": data} if data else {})}
    if kind or space:
        values, _ = _draw(kind, space, trials, seed)
        detail["search"] = {"kind": kind, "space": values, "trials": trials, "seed": seed}
    _run(target(context).stack(), detail, wait, as_json)


@app.command(epilog="Example: retrue promote 3fa9c1d2b0e4 --reason 'the frozen rows are out of date'")
def promote(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Id of a model in the lake; `current` puts the newest code under it.")],
    reason: Reason,
    wait: Wait = True,
    as_json: AsJson = False,
) -> None:
    """Publish and serve a model that exists, past the gate but not past its golden inputs."""
    if not reason.strip():
        raise typer.BadParameter("say why: the reason is all that the ledger will know of it")
    stack = target(context).stack()
    if model == "current":
        model = stack.status()["model_version"]
    promotion.model_uri(stack.lake, model)
    _run(stack, {"reason": reason, "model": model}, wait, as_json)


@app.command(epilog="Example: retrue rollback --reason 'complaints about tweets'")
def rollback(
    context: typer.Context,
    reason: Reason = "a person decided",
    version: Annotated[str, typer.Option(help="Version to go back to, as it was.")] = "",
    as_json: AsJson = False,
) -> None:
    """Serve the model that served before, with the code and settings of today."""
    stack = target(context).stack()
    entry = promotion.roll_back(stack.lake, stack.release, reason, _now(), version or None)
    stack.crown(str(entry.model))
    show(json.loads(entry.to_json())) if as_json else err.print(f"version {entry.version} serves model {entry.model}")


@app.command("cost", epilog="Example: retrue cost --rps 2 --rows 100000 --retrains 1")
def monthly(
    rps: Annotated[float, typer.Option(min=0, help="Requests a second, on average over the month.")] = 1.0,
    rows: Annotated[float, typer.Option(min=0, help="Rows of CSVs in a month.")] = 0.0,
    retrains: Annotated[float, typer.Option(min=0, help="Retrainings in a month.")] = 1.0,
    milliseconds: Annotated[float, typer.Option("--ms", min=0, help="What a text takes on one vCPU.")] = 30.0,
    hours: Annotated[float, typer.Option(min=0, help="What one training takes.")] = 1.0,
    price: Annotated[
        float, typer.Option(min=0, help="Dollars an hour of the machine that trains; 0 for your own.")
    ] = 1.41,
    settings: Annotated[list[str] | None, typer.Option("--set", help="Parameter of the template, NAME=value.")] = None,
    as_json: AsJson = False,
) -> None:
    """What this deployment would cost in a month on AWS, from the template's own settings and list prices."""
    template = localize.read(PROJECT / "template.yaml")
    parameters = _pairs(settings)
    if unknown := sorted(parameters.keys() - template["Parameters"].keys()):
        raise BadInput(f"the template has no parameter {', '.join(unknown)}: docs/deploy.md lists them")
    usage = cost.Usage(rps, rows, retrains, milliseconds, hours, price)
    try:
        lines = cost.bill(template, parameters, usage, len(Metric))
    except ValueError as error:
        raise BadInput(str(error)) from None
    total = sum(line.dollars for line in lines)
    if as_json:
        show({"dollars": round(total, 2), "lines": [dataclasses.asdict(line) for line in lines]})
        return
    table = Table("in a month", "how much", "dollars", title=f"about {total:,.2f} dollars a month")
    for line in lines:
        table.add_row(
            line.what, f"{line.quantity:,.{0 if line.quantity >= 10 else 1}f} {line.unit}", f"{line.dollars:,.2f}"
        )
    out.print(table)


@app.command(epilog="Example: retrue ledger")
def ledger(
    context: typer.Context,
    as_json: AsJson = False,
) -> None:
    """What served when, and why."""
    entries = target(context).stack().lake.ledger()
    if as_json:
        show([json.loads(entry.to_json()) for entry in entries])
        return
    table = Table("time", "action", "model", "version", "reason")
    for entry in entries:
        moved = " → ".join(version for version in (entry.previous_version, entry.version) if version) or "-"
        when = entry.time[:16].replace("T", " ")
        table.add_row(when, entry.action, entry.model or "-", moved, entry.reason)
    out.print(table)


@app.command(epilog="Example: retrue --stack retrue-prod --profile work worker")
def worker(
    context: typer.Context,
    program: Annotated[Path, typer.Option(help="The training program.")] = PROJECT / "functions/train/job.py",
    once: Annotated[bool, typer.Option(help="End after one poll.")] = False,
) -> None:
    """Take training work from the workflow and do it on this machine."""
    from retrue import worker as work

    # SystemExit runs the finally clauses, which end a training program that is under way.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    stack = target(context).stack()
    activity = Activity(stack.outputs["ActivityArn"], stack.session.client("stepfunctions"))
    work.serve(stack.lake, activity, program, socket.gethostname(), lambda line: print(line, flush=True), once)


# data
@app.command(epilog="Example: retrue data imdb --use    or: retrue data reviews.csv --text body --label stars --use")
def data(
    context: typer.Context,
    source: Annotated[str, typer.Argument(help="A folder <split>/<label>/*.txt, a .csv, a .parquet, or imdb.")],
    text: Annotated[str, typer.Option(help="Column of the text.")] = "text",
    label: Annotated[str, typer.Option(help="Column of the label.")] = "label",
    split: Annotated[str, typer.Option(help="Column that says train, validation or test.")] = "",
    group: Annotated[str, typer.Option(help="Column, such as the film, whose rows stay in one split.")] = "",
    test: Annotated[Path | None, typer.Option(exists=True, help="A second file, whose rows are for testing.")] = None,
    rename: Annotated[list[str] | None, typer.Option(help="Give a label another name, 1=positive.")] = None,
    use: Annotated[bool, typer.Option("--use", help="Upload it, and train on it from now on.")] = False,
    as_json: AsJson = False,
) -> None:
    """Prepare a dataset: clean, without duplicates, split, immutable, named by its content."""
    from retrue import sources

    where = target(context).home
    columns = sources.Columns(text, label, split or None, group or None, names=_pairs(rename))
    what = {"train": Path(source), "test": test} if test else source
    splits = sources.load(what, where.root / "downloads", columns)
    folder = dataset.write(where.root / "datasets", splits, name=Path(source).name.split(".")[0], source=source)
    manifest = dataset.read_manifest(folder)
    if use:
        with steps() as tell:
            tell("uploading")
            machine.use(target(context).stack(), folder)
    if as_json:
        show({"folder": str(folder), **json.loads(manifest.to_json())})
        return
    table = Table("split", *manifest.labels)
    for part, counts in manifest.counts.items():
        table.add_row(part, *(str(counts.get(kind, 0)) for kind in manifest.labels))
    out.print(table)
    dropped = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in manifest.dropped.items())
    err.print(f"dataset {manifest.id} in {folder}; left out: {dropped}")


@app.command(epilog="Example: retrue train 3fa9c1d2b0e4    or: retrue train data --search random --space space.yaml")
def train(
    context: typer.Context,
    data: Annotated[str, typer.Argument(metavar="DATASET", help="What `retrue data` wrote: its folder or its id.")],
    source: Annotated[str, typer.Option("--encoder", help="As for `retrue encoder`.")] = "minilm-l6-distilbert",
    set: Settings = None,
    kind: Kind = None,
    space: Space = None,
    trials: Trials = 9,
    seed: Seed = 0,
    hours: Annotated[float, typer.Option(min=0, help="Hours that all trainings may take together; 0: any.")] = 0.0,
    to: Annotated[
        Path | None, typer.Option("--out", help="New folder for the model; in the home unless given.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train one model on this machine, or the best of a search; repeated after an interruption, it goes on.

    A search trains every trial for a small part of its steps, the best third on for three times as long, and the best
    of those to the end. It compares trials on the validation split, so no test row has a part in the choice.
    """
    where, values = target(context).home, _pairs(set)
    drawn = _draw(kind, space, trials, seed)[1] if kind or space else [{}]
    folder = Path(data) if Path(data).is_dir() else where.root / "datasets" / data
    dataset.read_manifest(folder)
    if to and to.exists():
        raise BadInput(f"{to} is there already: name a folder that is not")

    from retrue.training import encoder, study  # torch takes seconds to import

    plan = study.plan(values, drawn, hours)
    with steps() as tell:
        tell(f"fetching the encoder {source}")
        start = encoder.resolve(source, where.encoders)
    place = where.root / "studies" / study.key(start, folder, values, plan)
    with stoppable() as stop:
        found = study.run(start, folder, values, plan, place, trials_shown(bool(kind)), stop=stop)
    with steps() as tell:
        tell("exporting")
        made = study.finish(folder, place, found, iso(_now()))
        model, card = artifact.identity(made), artifact.read_card(made)
        home = to or where.root / "models" / model
        if not home.exists():
            home.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(made, home)
        tell("writing it to MLflow")
        judged = {"promote": False, "reason": "made by `retrue train`: no gate has judged it"}
        curves = search.curves(found) if kind else []
        uri = registry.register(
            where.mlflow, OWN, model, home.resolve().as_uri(), card, judged,
            artifacts=[home / name for name in (artifact.CARD, *artifact.REPORT)],
            location=(where.root / "mlflow").as_uri(), trials=curves,
        )  # fmt: skip
    shutil.rmtree(place)
    test = card.metrics["test"]
    facts = {"model": model, "folder": str(home), "card": str(home / artifact.CARD), "mlflow": uri}
    if as_json:
        tried = [{key: value for key, value in each.items() if key not in search.CURVES} for each in curves]
        show({**facts, **{key: test[key] for key in ("n", "accuracy", "low", "high")}, "trials": tried})
        return
    right = f"accuracy {test['accuracy']:.1%} (95 %: {test['low']:.1%} to {test['high']:.1%}) on {test['n']} test rows"
    table = Table(show_header=False, box=None)
    for name, value in {"test": right, **facts}.items():
        table.add_row(name, value)
    out.print(table)


@app.command(epilog="Example: retrue encoder distilbert-base-uncased    or: retrue encoder ./my-bert --as my-bert")
def encoder(
    context: typer.Context,
    source: Annotated[str, typer.Argument(help="A folder, a checkpoint on the hub, or the offline default.")],
    name: Annotated[str, typer.Option("--as", help="Name in the lake; the last part of the source unless given.")] = "",
) -> None:
    """Put a base encoder into the lake; the template's parameter Encoder says which one training starts from."""
    from retrue.training import encoder as encoders  # torch takes seconds to import

    stack, name = target(context).stack(), name or Path(source).name
    with steps() as tell:
        tell(f"fetching {source}")
        folder = encoders.resolve(source, target(context).home.encoders)
        tell("uploading")
        stack.lake.upload_folder(folder, f"{lake.ENCODERS}{name}/")
    err.print(f"encoder {name} is in the lake; deploy with Encoder={name} to train from it")


# helpers of the commands
def _compare(
    where: Home, files: tuple[Path, Path], model: Path | None, group: str, alpha: float, most: int
) -> dict[str, Any]:
    from retrue import comparison  # onnxruntime takes a moment to import, and no other command needs it
    from retrue.classifier import Classifier

    reference, current = comparison.read(files[0], group, most), comparison.read(files[1], "", most)
    for path, read in zip(files, (reference, current), strict=True):
        if read.rejected:
            err.print(f"{path.name}: {read.rejected} rows cannot be read and are left out")
        if read.skipped:
            err.print(f"{path.name}: {read.skipped} more rows are not read; --most sets how many are")
    folder = model or where.root / "readers" / DEFAULT
    if not (folder / artifact.MODEL).is_file():
        from retrue.training import encoder, export  # torch takes seconds to import

        with steps() as tell:
            tell(f"preparing the base encoder {DEFAULT}, once")
            export.reader(encoder.resolve(DEFAULT, where.encoders), folder)
    classifier = Classifier.open(folder) if model else Classifier(folder)
    with tqdm(total=len(reference.texts) + len(current.texts), unit=" texts", disable=None) as bar:
        return comparison.compare(
            reference, current, classifier, _now(), alpha=alpha, trained=model is not None, told=bar.update
        )


def _pairs(values: list[str] | None) -> dict[str, str]:
    wrong = [value for value in values or () if "=" not in value]
    if wrong:
        raise typer.BadParameter(f"{wrong[0]} is not name=value")
    return dict(value.split("=", 1) for value in values or ())


def _draw(kind: str | None, path: Path | None, trials: int, seed: int) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """What the file of a space holds, and the trials that come of it."""
    if kind is None or path is None:
        raise typer.BadParameter("a search needs both --search and --space")
    import yaml

    from retrue.training.settings import Settings as Training

    try:
        values = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInput(f"{path.name} is neither YAML nor JSON: {error}") from None
    return values, search.draw(kind, search.space(values, search.kinds(Training)), trials, seed)


def _now() -> int:
    return time.time_ns() // 1_000_000


def _is_free(port: int, host: str = "127.0.0.1") -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _run(stack: Stack, detail: dict[str, Any], wait: bool, as_json: bool) -> None:
    execution = ask(stack, detail)
    if not wait:
        show({"execution": execution}) if as_json else err.print(f"began {execution}")
        return
    result = follow(stack, execution)
    if as_json:
        show(result)
    else:
        err.print(f"{result['outcome']}: {result.get('reason', 'another retraining was running already')}")
    if result["outcome"] != "Promoted":
        raise typer.Exit(NOT_PROMOTED)


def _tell_job(job: dict[str, Any], as_json: bool) -> None:
    if as_json:
        show(job)
    else:
        counts = f"{job.get('accepted', 0)} accepted, {job.get('rejected', 0)} rejected"
        err.print(f"job {job.get('id') or job['input']}: {job['state']}, {counts}", soft_wrap=True)
        for kind in ("results", "rejects"):
            if job.get(kind):
                err.print(f"  {kind}: {job[kind]}", highlight=False, soft_wrap=True)
    if job["state"] == "failed":
        raise StackError(f"job {job['id']} failed: {job.get('error')}")


def _welcome(home: Home, stack: Stack, prediction: dict[str, Any], seconds: float) -> None:
    example = home.root / "example.csv"
    example.write_text('id,text\n1,"A warm, funny film with a wonderful cast."\n2,I left after ten minutes.\n3,\n')
    here = Path.cwd()
    near = example.relative_to(here) if example.is_relative_to(here) else example
    key, url = stack.api_key, stack.api_url
    call = f"curl -s -H 'x-api-key: {key}' -H 'content-type: application/json'"
    lines = [
        f"ready in {seconds:.0f} s: version {stack.release.live_version()} serves model {prediction['model']}",
        f"  API     {url}",
        f"  key     {key}",
        f"  bucket  {stack.outputs['BucketName']}",
        "Paste these: a prediction, a CSV job, a label.",
        f'  {call} -d \'{{"inputs": "I left after ten minutes."}}\' {url}/v1/predict',
        f"  .venv/bin/retrue batch {near}",
        f'  {call} -d \'{{"id": "{prediction["id"]}", "label": "{prediction["label"]}"}}\' {url}/v1/feedback',
    ]
    sys.stdout.write("\n".join(lines) + "\n")


def main() -> None:
    """Run a command; errors that retrue foresees are told in a sentence, without a traceback."""
    try:
        app()
    except RetrueError as error:
        err.print(f"[red]error:[/red] {error}", highlight=False, soft_wrap=True)
        sys.exit(1)
    except (ClientError, BotoCoreError) as error:
        err.print(f"[red]error:[/red] the cloud answered: {error}", highlight=False, soft_wrap=True)
        sys.exit(1)
    except (KeyboardInterrupt, subprocess.SubprocessError) as error:
        err.print(f"[red]stopped[/red] {error}")
        sys.exit(1)


if __name__ == "__main__":
    main()
