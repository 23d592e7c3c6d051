"""What retrue writes down: predictions, labels, jobs, and the ledger of promotions.

Records are JSON, one object a line. Times are UTC in ISO 8601 with milliseconds. Ids of predictions are UUIDv7
(RFC 9562), whose first 48 bits are the time in milliseconds: the id alone says where in the lake its record lies.
"""

import dataclasses
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, Self, get_args

Trigger = Literal["drift", "accuracy", "schedule", "person"]  # who or what asked for a retraining
TRIGGERS: tuple[Trigger, ...] = get_args(Trigger)
LAST_MS = 253_402_300_799_999  # the end of the year 9999, where dates end; 48 bits reach further


def new_id(ms: int, entropy: bytes) -> str:
    """A UUIDv7 for a time in milliseconds since 1970 and at least 10 bytes of randomness (RFC 9562, section 5.7)."""
    value = (ms << 80) | int.from_bytes(entropy[:10])
    value = value & ~(0xF << 76) | (0x7 << 76)  # version
    value = value & ~(0x3 << 62) | (0x2 << 62)  # variant
    return str(uuid.UUID(int=value))


def id_ms(id: str) -> int | None:
    """The time in milliseconds inside a UUIDv7, or None where the text is no UUIDv7."""
    try:
        parsed = uuid.UUID(id)
    except ValueError:
        return None
    if str(parsed) != id or parsed.version != 7:
        return None
    ms = parsed.int >> 80
    return ms if ms <= LAST_MS else None


def kept(id: str, rate: float) -> bool:
    """Whether a prediction belongs to the share whose records are kept: told by the last 62 bits of its id alone.

    They are random (RFC 9562, section 5.7), or in a CSV job a hash. What is kept at one rate is kept at a higher one.
    """
    return (uuid.UUID(id).int & ((1 << 62) - 1)) < rate * (1 << 62)


def why_missing(id: str, rate: float) -> str:
    """What to say where there is no record of a prediction, of which a share is kept."""
    if id_ms(id) is None or kept(id, rate):
        return "there is no prediction with this id"
    return f"no record of this prediction was kept: {100 * rate:g} % are, which their ids decide (CaptureRate)"


def iso(ms: int) -> str:
    """A time in milliseconds since 1970 as text, such as 2026-11-22T09:30:00.125Z."""
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def from_iso(text: str) -> int:
    """The milliseconds since 1970 of a time that `iso` wrote."""
    return round(datetime.fromisoformat(text).timestamp() * 1000)


@dataclass(frozen=True, slots=True)
class Record:
    """One JSON object a line; unknown keys are left out when reading, so that newer writers do no harm."""

    def to_json(self) -> str:
        # Not asdict, which copies every number of a projection; None stays where a reader has no default for it.
        values = {
            f.name: v
            for f in dataclasses.fields(self)
            if (v := getattr(self, f.name)) is not None or f.default is dataclasses.MISSING
        }
        return json.dumps(values, ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        return cls.of(json.loads(text))

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        names = {f.name for f in dataclasses.fields(cls)}
        return cls(**{k: v for k, v in values.items() if k in names})


@dataclass(frozen=True, slots=True)
class Prediction(Record):
    """One answer that was given: `projection` is the drift vector of the text, `source` is "http" or a job's id.

    `pieces` is the share of the tokens read, but for the marks at both ends, that continue a word, and `symbols` the
    share of the text's characters that are neither letter, digit nor white space.
    """

    id: str
    time: str
    model: str
    label: str
    score: float
    scores: dict[str, float]
    tokens: int
    truncated: bool
    projection: list[float]
    source: str
    text: str | None = None
    pieces: float = 0.0
    symbols: float = 0.0

    def truth(self, label: str, time: str, source: str) -> "Label":
        """A label for it, with what nobody should need to look up again."""
        return Label(
            id=self.id,
            time=time,
            label=label,
            model=self.model,
            predicted=self.label,
            scores=self.scores,
            source=source,
            text=self.text,
            tokens=self.tokens,
            origin=self.source.partition(":")[0],
        )


@dataclass(frozen=True, slots=True)
class Label(Record):
    """The truth about one prediction, with the prediction's own facts, so that nobody needs to join again.

    `source` says whence the label came, `origin` whence the text: "http" or "csv".
    """

    id: str
    time: str
    label: str
    model: str
    predicted: str
    scores: dict[str, float]
    source: str
    text: str | None = None
    tokens: int = 0
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Job(Record):
    """A CSV job: `kind` is "predict" or "label", `state` moves from running to done or failed."""

    id: str
    kind: Literal["predict", "label"]
    input: str
    state: Literal["running", "done", "failed"]
    started: str
    model: str | None = None
    rows: int = 0
    accepted: int = 0
    rejected: int = 0
    finished: str | None = None
    seconds: float | None = None
    results: str | None = None
    rejects: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class LedgerEntry(Record):
    """One line of the append-only ledger: what began to serve (or was refused), when, why, and what came before."""

    time: str
    action: Literal["promoted", "rejected", "withdrawn", "rolled-back", "failed"]
    model: str | None
    reason: str
    version: str | None = None
    previous_model: str | None = None
    previous_version: str | None = None
    run: str | None = None
    evidence: dict[str, Any] | None = None
