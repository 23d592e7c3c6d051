"""The model registry: each candidate, promoted or not, as a run and a model version in MLflow."""

import os
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from retrue.artifact import Card

NAME = "retrue"
STATES = {"finished": "FINISHED", "stopped early": "KILLED", "failed": "FAILED"}


def register(
    tracking_uri: str,
    environment: str,
    model: str,
    uri: str,
    card: Card,
    verdict: dict[str, Any],
    *,
    trials: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Write a run with the card's settings and metrics, and a model version that points to the folder; its URI.

    The model folder stays where it is. Rejected candidates are registered too, with the reason. Each of `trials` is
    {"name", "settings", "metric", "state" (one of STATES), "history", "losses"} and becomes a run below. Without a
    tracking URI nothing is written, and the answer is empty.
    """
    if not tracking_uri:
        return ""
    from mlflow.exceptions import MlflowException

    client = _client(tracking_uri)
    experiment = client.get_experiment_by_name(f"{NAME}-{environment}")
    experiment_id = experiment.experiment_id if experiment else client.create_experiment(f"{NAME}-{environment}")
    run = client.create_run(experiment_id, run_name=model, tags={"model": model, "dataset": card.dataset})
    for name, value in card.settings.items():
        client.log_param(run.info.run_id, name, value)
    for name, value in flat(card.metrics).items():
        client.log_metric(run.info.run_id, _allowed(name), value)
    for trial in trials:
        tags = {"mlflow.parentRunId": run.info.run_id, "state": trial["state"], "dataset": card.dataset}
        child = client.create_run(experiment_id, run_name=trial["name"], tags=tags).info.run_id
        for name, value in trial["settings"].items():
            client.log_param(child, name, value)
        if trial["metric"] is not None:
            client.log_metric(child, "metric", trial["metric"])
        for entry in trial["history"]:
            for name, value in entry.items():
                client.log_metric(child, _allowed(name), value, step=round(entry["step"]))
        for step, loss in trial["losses"]:
            client.log_metric(child, "train_loss", loss, step=round(step))
        client.set_terminated(child, STATES[trial["state"]])
    client.set_terminated(run.info.run_id)

    name = f"{NAME}-{environment}"
    try:
        client.get_registered_model(name)
    except MlflowException:
        client.create_registered_model(name, description="Models that retrue trained; the folder is the source.")
    tags = {"model": model, "promoted": str(bool(verdict["promote"])).lower(), "reason": str(verdict["reason"])[:4_000]}
    version = client.create_model_version(name, source=uri, run_id=run.info.run_id, tags=tags)
    return f"models:/{name}/{version.version}"


def crown(tracking_uri: str, environment: str, model: str) -> str | None:
    """Give the alias "champion" to the newest version of a model; its number, or None where it was never registered."""
    if not tracking_uri:
        return None
    client = _client(tracking_uri)
    name = f"{NAME}-{environment}"
    versions = client.search_model_versions(f"name = '{name}' and tags.model = '{model}'")
    if not versions:
        return None
    newest = max(versions, key=lambda version: int(version.version))
    client.set_registered_model_alias(name, "champion", newest.version)
    return str(newest.version)


def _client(tracking_uri: str) -> Any:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    from mlflow import MlflowClient

    with warnings.catch_warnings():
        # MLflow's tables use a way to load that SQLAlchemy 2.1 has deprecated.
        warnings.filterwarnings("ignore", "The ``noload`` loader strategy is deprecated", DeprecationWarning)
        return MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)


def _allowed(name: str) -> str:
    """The name of a metric without what MLflow refuses: labels are in it, and they may hold anything."""
    return re.sub(r"[^\w.\- :]", lambda found: f"_{ord(found[0]):x}", name)[:250]


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of a nested dictionary, with their path as the name."""
    found: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[prefix + key] = float(value)
    return found
