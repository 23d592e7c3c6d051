"""The model registry: each candidate, promoted or not, as a run and a model version in MLflow.

Each environment is one experiment and one registered model, both named retrue-<environment>. The alias `champion` is on
the version that serves. `challenger` is on the newest version that does not: it stands before its release, or was
refused. The trials of a search are runs below the run of the candidate that came out of it.
"""

import logging
import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from retrue.artifact import Card
from retrue.errors import WrongSetting
from retrue.records import from_iso

NAME = "retrue"
CHAMPION, CHALLENGER = "champion", "challenger"
DATABASES = {"sqlite", "postgresql", "mysql", "mssql"}
STATES = {"finished": "FINISHED", "stopped early": "KILLED", "failed": "FAILED"}
BATCH = 1_000  # metrics that a server takes at a time
LONGEST = 5_000  # characters of a tag or a parameter that every server takes


def register(
    tracking_uri: str,
    environment: str,
    model: str,
    uri: str,
    card: Card,
    verdict: Mapping[str, Any],
    *,
    artifacts: Iterable[Path] = (),
    location: str = "",
    trials: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Write a run and a model version that points to the folder at `uri`, which stays where it is; the version's URI.

    The run gets the card's settings, metrics and curves, and the files `artifacts`. `location` is where artefacts
    lie, such as s3://bucket/mlflow, when runs are kept in a database; a server has a place of its own. Each
    of `trials` is {"name", "settings", "metric", "state" (one of STATES), "history", "losses"}. Rejected candidates are
    registered too, with the reason. Without a tracking URI nothing is written, and the answer is empty.
    """
    if not tracking_uri:
        return ""
    from mlflow.exceptions import MlflowException

    client = _client(tracking_uri)
    name = f"{NAME}-{environment}"
    experiment = client.get_experiment_by_name(name)
    place = f"{location.rstrip('/')}/{name}" if location and _scheme(tracking_uri) in DATABASES else None
    where = experiment.experiment_id if experiment else client.create_experiment(name, artifact_location=place)
    made = from_iso(card.created)
    judged = {"promoted": str(bool(verdict["promote"])).lower(), "reason": str(verdict["reason"])[:LONGEST]}
    facts = {"encoder_sha256": card.run.get("encoder_sha256", ""), "code": card.run.get("code", "")}
    run = client.create_run(where, run_name=model, tags={"model": model, "dataset": card.dataset, **facts, **judged})
    id = run.info.run_id
    _log(client, id, made, card.settings, flat(card.metrics), _curves(card.run))
    for path in artifacts:
        client.log_artifact(id, str(path))
    for trial in trials:
        tags = {"mlflow.parentRunId": id, "state": trial["state"], "dataset": card.dataset}
        child = client.create_run(where, run_name=trial["name"], tags=tags).info.run_id
        metric = {} if trial["metric"] is None else {"metric": float(trial["metric"])}
        _log(client, child, made, trial["settings"], metric, _curves(trial))
        client.set_terminated(child, STATES[trial["state"]])
    client.set_terminated(id)

    try:
        client.get_registered_model(name)
    except MlflowException:
        client.create_registered_model(name, description="Models that retrue trained; the folder is the source.")
    version = client.create_model_version(name, source=uri, run_id=id, tags={"model": model, **judged})
    client.set_registered_model_alias(name, CHALLENGER, version.version)
    return f"models:/{name}/{version.version}"


def crown(tracking_uri: str, environment: str, model: str) -> str | None:
    """Give the alias `champion` to the newest version of a model; its number, or None where it was never registered.

    Where that version was the challenger, there is none any more.
    """
    if not tracking_uri:
        return None
    client = _client(tracking_uri)
    name = f"{NAME}-{environment}"
    versions = client.search_model_versions(f"name = '{name}' and tags.model = '{model}'")
    if not versions:
        return None
    newest = max(versions, key=lambda version: int(version.version))
    client.set_registered_model_alias(name, CHAMPION, newest.version)
    if str(client.get_registered_model(name).aliases.get(CHALLENGER)) == str(newest.version):
        client.delete_registered_model_alias(name, CHALLENGER)
    return str(newest.version)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of a nested dictionary, with their path as the name."""
    found: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[prefix + key] = float(value)
    return found


def _client(tracking_uri: str) -> Any:
    if _scheme(tracking_uri) in ("", "file") and tracking_uri != "databricks":
        raise WrongSetting(
            "MLFLOW_TRACKING_URI names a folder, and MLflow no longer keeps runs in one: give a database such as "
            "sqlite:////home/me/mlflow.db, the https:// address of a server, or the ARN of one that SageMaker manages; "
            "`mlflow migrate-filestore` carries an old folder into a database"
        )
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    import mlflow

    if _scheme(tracking_uri) == "arn":
        # SageMaker's plugin signs each request for the server that the process as a whole talks to.
        mlflow.set_tracking_uri(tracking_uri)
    else:
        # The same plugin fails at each request to any other server, which MLflow reports and otherwise ignores.
        logging.getLogger("mlflow.tracking.request_header.registry").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # MLflow's tables use a way to load that SQLAlchemy 2.1 has deprecated.
        warnings.filterwarnings("ignore", "The ``noload`` loader strategy is deprecated", DeprecationWarning)
        return mlflow.MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)


def _scheme(tracking_uri: str) -> str:
    """What a URI begins with, without a database's driver: sqlite, postgresql, https, arn, or nothing for a path."""
    return urlsplit(tracking_uri).scheme.partition("+")[0]


def _log(
    client: Any,
    run: str,
    ms: int,
    settings: Mapping[str, Any],
    metrics: Mapping[str, float],
    curves: Iterable[tuple[str, float, int]],
) -> None:
    """Parameters, final metrics at step 0, and curves of (name, value, step), in as few calls as a server takes."""
    from mlflow.entities import Metric, Param

    found = [Metric(_allowed(name), value, ms, 0) for name, value in metrics.items()]
    found += [Metric(_allowed(name), value, ms, step) for name, value, step in curves]
    params = [Param(name, str(value)[:LONGEST]) for name, value in settings.items()]
    room = BATCH - len(params)
    client.log_batch(run, metrics=found[:room], params=params)
    for start in range(room, len(found), BATCH):
        client.log_batch(run, metrics=found[start : start + BATCH])


def _curves(run: Mapping[str, Any]) -> Iterable[tuple[str, float, int]]:
    """The curves of a training: its loss step by step, and what each evaluation measured."""
    for step, loss in run.get("losses", ()):
        yield "train.loss", float(loss), int(step)
    for entry in run.get("history", ()):
        for name, value in entry.items():
            if name != "step":
                yield f"evaluation.{name}", float(value), int(entry["step"])


def _allowed(name: str) -> str:
    """The name of a metric without what MLflow refuses: labels are in it, and they may hold anything."""
    return re.sub(r"[^\w.\- :]", lambda found: f"_{ord(found[0]):x}", name)[:250]
