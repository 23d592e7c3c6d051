"""The search over training settings: which are tried, how long each may run, and which of them go on.

Successive halving (Jamieson and Talwalkar 2016) with the numbers of one bracket of Hyperband (Li et al. 2018,
algorithm 1): all trials train for a small share of their steps, the best 1/ETA of them go on from where they paused
for ETA times as long, and of those FINALISTS at least train to their end. The winner is the best of the last rung by
the metric on the validation split, and it is used as it is: its last rung finished a full training, under the schedule
that a training without a search would have had. No rule here ever sees a test row.
"""

import dataclasses
import json
import math
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from retrue import settings
from retrue.errors import BadInput, TrainingFailed
from retrue.records import Record

ETA = 3
TRAINING_SHARE = 0.8  # of a job's time; what is left is for the rest of it
LEAST_SHARE = 0.1  # a trial is not judged before this share of its steps
FINALISTS = 2  # trials that train to their end at least: a trial that leads early is often overtaken late
DRAWS = 20  # for each trial wanted, where equal draws are thrown away
# What the search itself sets, what every trial must share to be compared, and what is fetched before a trial begins.
OWN = ("until", "minutes", "checkpoint_minutes", "metric", "encoder_name")
CURVES = ("history", "losses")
KINDS = ("grid", "random")
RANGES: dict[str, tuple[type, ...]] = {"uniform": (float,), "loguniform": (float,), "randint": (int, float)}

State = Literal["running", "stopped early", "finished", "failed"]
Space = dict[str, list[str] | tuple[str, float, float]]


@dataclass(frozen=True, slots=True)
class Plan(Record):
    """What a search will do: the settings of each trial as texts, and of each rung the share of the planned steps at
    which its trials pause, how many it holds at most, and how many seconds one of their jobs may take (0: any).

    `price` is that of an hour of one machine, 0 where nobody named one.
    """

    settings: list[dict[str, str]]
    shares: list[float]
    places: list[int]
    seconds: list[int]
    price: float = 0.0

    @property
    def hours(self) -> float:
        """Machine hours that the search takes at the very most."""
        return sum(places * seconds for places, seconds in zip(self.places, self.seconds, strict=True)) / 3600

    @property
    def cost(self) -> float:
        """What those hours cost, in the currency of the price."""
        return self.hours * self.price

    @property
    def work(self) -> float:
        """Steps that the search trains at most, as a multiple of one full training."""
        return sum(places * part for places, part in zip(self.places, _parts(self.shares), strict=True))

    def told(self) -> str:
        """The plan in a sentence."""
        rungs = ", ".join(f"{count} to {share:.0%}" for count, share in zip(self.places, self.shares, strict=True))
        bound = f", at most {self.hours:.2f} machine hours" if self.hours else ""
        price = f" for {self.cost:.2f} at {self.price:g} an hour" if self.cost else ""
        return f"{len(self.settings)} trials ({rungs}), the work of {self.work:.1f} full trainings{bound}{price}"


@dataclass(frozen=True, slots=True)
class Trial(Record):
    """One choice of settings and what became of it in its `rungs` so far; `history` and `losses` are its curves."""

    name: str
    settings: dict[str, str]
    state: State = "running"
    rungs: int = 0
    metric: float | None = None
    seconds: float = 0.0
    error: str = ""
    artifacts: str = ""
    history: list[dict[str, float]] = field(default_factory=list)
    losses: list[list[float]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Search(Record):
    """How far a search is: the rung that runs, the first of which is 0, and its trials in the order of the plan."""

    plan: Plan
    rung: int
    trials: list[Trial]

    @classmethod
    def begin(cls, plan: Plan) -> Self:
        return cls(plan, 0, [Trial(f"{number:02d}", chosen) for number, chosen in enumerate(plan.settings)])

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        return cls(Plan.of(values["plan"]), values["rung"], [Trial.of(trial) for trial in values["trials"]])

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False)

    @property
    def running(self) -> list[Trial]:
        return [trial for trial in self.trials if trial.state == "running"]

    def replaced(self, tried: Trial) -> Self:
        """The same search with what became of one trial."""
        trials = [tried if trial.name == tried.name else trial for trial in self.trials]
        return dataclasses.replace(self, trials=trials)


def kinds(shape: type) -> dict[str, type]:
    """The settings that may be searched, and their types: the fields of the training's dataclass but for OWN."""
    hints = typing.get_type_hints(shape)
    return {each.name: hints[each.name] for each in dataclasses.fields(shape) if each.name not in OWN}


def space(values: Any, known: Mapping[str, type]) -> Space:
    """The values of each setting as texts, or its range as (kind, low, high), from what YAML or JSON hold.

    `{learning_rate: {loguniform: [1e-5, 1e-3]}, epochs: [1, 2], max_tokens: {randint: [64, 256]}}`: randint holds both
    its ends. BadInput names every entry that is wrong.
    """
    if not isinstance(values, Mapping) or not values:
        raise BadInput("the space is not a mapping of settings to lists of values: see `retrue train --help`")
    unknown = [str(name) for name in values if name not in known]
    wrong = [f"{', '.join(unknown)} cannot be searched: there are {', '.join(known)}"] if unknown else []
    found: Space = {}
    for name in [name for name in values if name in known]:
        entry = values[name]
        try:
            found[name] = _range(entry, known[name]) if isinstance(entry, Mapping) else _values(entry, known[name])
        except ValueError as error:
            wrong.append(f"{name} {error}")
    if wrong:
        raise BadInput("; ".join(wrong))
    return found


def draw(kind: str, space: Space, trials: int, seed: int) -> list[dict[str, str]]:
    """The settings of at most so many trials, no two alike: every point of a grid, or a random draw.

    BadInput where a grid has more points than trials, or a range, which has no points to list.
    """
    from sklearn.model_selection import ParameterGrid, ParameterSampler  # takes seconds to import

    if kind not in KINDS:
        raise BadInput(f"there is no search {kind!r}: use {' or '.join(KINDS)}")
    if trials < 1:
        raise BadInput("a search needs at least one trial")
    lists = {name: entry for name, entry in space.items() if isinstance(entry, list)}
    points = math.prod(len(entry) for entry in lists.values())
    if kind == "grid":
        ranges = sorted(set(space) - set(lists))
        if ranges:
            raise BadInput(f"a grid has no ranges: list the values of {', '.join(ranges)}, or search at random")
        if points > trials:
            raise BadInput(f"the grid has {points} points and {trials} trials are allowed: list fewer values")
        return list(ParameterGrid(space))
    most = DRAWS * trials if len(lists) < len(space) else min(trials, points)
    entries = {name: entry if isinstance(entry, list) else _distribution(*entry) for name, entry in space.items()}
    unique: dict[tuple[tuple[str, str], ...], dict[str, str]] = {}
    for point in ParameterSampler(entries, most, random_state=seed):
        texts = {name: _text(value) for name, value in point.items()}
        unique.setdefault(tuple(texts.items()), texts)
        if len(unique) == trials:
            break
    return list(unique.values())


def plan(
    trials: Sequence[dict[str, str]], seconds: float, least: float, longest: float, price: float = 0.0, eta: int = ETA
) -> Plan:
    """The rungs for these trials, and the time that one job of each may take so that all keep within `seconds`.

    Every job gets `least` seconds, which it needs to start, and its part of the rest goes by the steps that it trains,
    up to `longest`. With `seconds` 0 no job has a limit. BadInput where the time is too short for so many trials.
    """
    rungs = 1 + min(_log(len(trials), eta), _log(1 / LEAST_SHARE, eta))
    shares = [float(eta) ** (rung + 1 - rungs) for rung in range(rungs)]
    places = [len(trials) // eta**rung for rung in range(rungs)]
    places[-1] = max(places[-1], min(FINALISTS, len(trials)))
    parts = _parts(shares)
    if not seconds:
        return Plan(list(trials), shares, places, [0] * rungs, price)
    spare = seconds - least * sum(places)
    if spare < 0:
        raise BadInput(
            f"{len(trials)} trials need {least * sum(places) / 3600:.2f} machine hours to start alone, and "
            f"{seconds / 3600:.2f} are allowed: search longer, or try fewer"
        )
    full = spare / sum(count * part for count, part in zip(places, parts, strict=True))
    return Plan(list(trials), shares, places, [math.floor(min(least + full * part, longest)) for part in parts], price)


def halve(found: Search) -> Search:
    """The search after its rung: the best go on, after the last rung all are finished; of equals the first is best.

    A trial that failed is in nobody's way: its place goes to the next best.
    """
    running = sorted(found.running, key=_rank)
    last = found.rung == len(found.plan.shares) - 1
    going = {trial.name for trial in (running if last else running[: found.plan.places[found.rung + 1]])}
    became: State = "finished" if last else "running"
    trials = [
        dataclasses.replace(trial, state=became if trial.name in going else "stopped early")
        if trial.state == "running"
        else trial
        for trial in found.trials
    ]
    return Search(found.plan, found.rung + 1, trials)


def winner(found: Search) -> Trial:
    """The best of those that finished; TrainingFailed with every reason where there is none."""
    finished = sorted((trial for trial in found.trials if trial.state == "finished"), key=_rank)
    if not finished:
        if len(found.trials) == 1:
            raise TrainingFailed(found.trials[0].error)
        reasons = "; ".join(f"trial {trial.name}: {trial.error}" for trial in found.trials if trial.state == "failed")
        raise TrainingFailed(f"no trial of the search reached its end: {reasons}")
    return finished[0]


def curves(found: Search) -> list[dict[str, Any]]:
    """The trials as the registry takes them."""
    wanted = ("name", "settings", "metric", "state", *CURVES)
    return [{name: getattr(trial, name) for name in wanted} for trial in found.trials]


def _rank(trial: Trial) -> tuple[float, str]:
    return -(trial.metric if trial.metric is not None else -math.inf), trial.name


def _parts(shares: Sequence[float]) -> list[float]:
    """The share of the steps that each rung adds."""
    return [share - before for before, share in zip([0.0, *shares], shares, strict=False)]


def _log(value: float, base: int) -> int:
    """The largest whole power of the base that is not above the value, counted since logarithms are not exact."""
    power = 0
    while base ** (power + 1) <= value:
        power += 1
    return power


def _values(entry: Any, kind: type) -> list[str]:
    if not isinstance(entry, list) or not entry:
        raise ValueError("is neither a list of values nor a range such as {uniform: [low, high]}")
    try:
        return list(dict.fromkeys(str(settings.parse(kind, str(value))) for value in entry))
    except ValueError:
        raise ValueError(f"holds a value that is not {settings.NAMES[kind]}") from None


def _range(entry: Mapping[Any, Any], kind: type) -> tuple[str, float, float]:
    (name, ends), *more = entry.items() or [("", None)]
    if more or name not in RANGES or not isinstance(ends, list) or len(ends) != 2:
        raise ValueError(f"is not a range: write one of {', '.join(RANGES)} with [low, high]")
    if kind not in RANGES[name]:
        raise ValueError(f"is {settings.NAMES[kind]}, of which {name} draws none")
    try:
        low, high = (settings.parse(int if name == "randint" else float, str(end)) for end in ends)
    except ValueError:
        raise ValueError(f"has ends of {name} that are not numbers of its type") from None
    if not low < high or not math.isfinite(high - low) or (name == "loguniform" and low <= 0):
        raise ValueError(f"needs ends of {name} with low < high{', both above 0' if name == 'loguniform' else ''}")
    return name, low, high


def _distribution(name: str, low: float, high: float) -> Any:
    from scipy import stats

    if name == "randint":
        return stats.randint(int(low), int(high) + 1)
    return stats.loguniform(low, high) if name == "loguniform" else stats.uniform(low, high - low)


def _text(value: Any) -> str:
    """A value as a training job gets it; a drawn number with four digits, so that a person can type a winner again."""
    return f"{float(value):.4g}" if isinstance(value, float) else str(value)
