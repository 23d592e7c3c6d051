"""Answers what a text is: the tokenizer and the ONNX graph of one model folder.

A text is never padded, and runs only beside texts of its own length, so its answer does not depend on what else was
asked. This module alone knows onnxruntime and tokenizers.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tokenizers import Tokenizer

from retrue import artifact
from retrue.artifact import CAPTURED, Card
from retrue.errors import ModelRefused
from retrue.records import Prediction, id_ms, iso

INPUTS, OUTPUTS = ["input_ids"], ["logits", "projection"]
DECIMALS = 6  # of a captured projection: finer digits are noise of float32
SYMBOLS = re.compile(r"[^\w\s]|_")  # neither letter, digit nor white space
BUDGET = 512  # tokens that run together: what they are on their way through a layer fits into a core's cache

Token = TypeVar("Token")


@dataclass(frozen=True, slots=True)
class Scored:
    """One answer: calibrated scores by label, and the raw numbers that the drift monitor wants."""

    label: str
    score: float
    scores: dict[str, float]
    tokens: int
    truncated: bool
    projection: NDArray[np.float32]  # (CAPTURED,)
    logits: NDArray[np.float32]  # (labels,)
    pieces: float = 0.0
    symbols: float = 0.0

    def record(self, id: str, model: str, source: str, text: str | None = None) -> Prediction:
        """What the lake keeps of it, at the time in its id; `text` only where the deployment keeps texts."""
        return Prediction(
            id=id,
            time=iso(id_ms(id) or 0),
            model=model,
            label=self.label,
            score=self.score,
            scores=self.scores,
            tokens=self.tokens,
            truncated=self.truncated,
            projection=[round(value, DECIMALS) for value in self.projection.tolist()],
            source=source,
            text=text,
            pieces=round(self.pieces, DECIMALS),
            symbols=round(self.symbols, DECIMALS),
        )


class Classifier:
    """One model folder in memory; `threads` are those of a single text's matrix products."""

    def __init__(self, folder: Path, *, model: str = "", threads: int = 1) -> None:
        self.model = model
        self.card: Card = artifact.read_card(folder)
        self._tokenizer = Tokenizer.from_file(str(folder / artifact.TOKENIZER))
        self._session = onnxruntime.InferenceSession(
            str(folder / artifact.MODEL),
            _options(threads),
            providers=["CPUExecutionProvider"],
        )
        _check(self._session, len(self.card.labels))

    @classmethod
    def open(cls, folder: Path, threads: int = 1) -> Self:
        """Check the folder against its manifest, then load it; ModelRefused where a file was altered."""
        return cls(folder, model=artifact.verify(folder), threads=threads)

    def score(self, text: str) -> Scored:
        """Classify one text; what lies beyond `card.max_tokens` is not read."""
        return self.score_many([text])[0]

    def score_many(self, texts: Sequence[str]) -> list[Scored]:
        """Classify texts, answers in their order; those of one length run together, BUDGET tokens at a time.

        Padding would make them slower together than alone, and change their answers.
        """
        read = [self._read(text) for text in texts]
        by_length: dict[int, list[int]] = {}
        for place, one in enumerate(read):
            by_length.setdefault(len(one.ids), []).append(place)
        answers: list[Scored | None] = [None] * len(read)
        for length, places in by_length.items():
            together = max(1, BUDGET // length)
            for first in range(0, len(places), together):
                group = places[first : first + together]
                fed = np.array([read[place].ids for place in group], np.int64)
                for place, logits, projection in zip(
                    group, *self._session.run(OUTPUTS, {"input_ids": fed}), strict=True
                ):
                    answers[place] = self._answer(texts[place], read[place], logits, projection)
        return [answer for answer in answers if answer is not None]

    def _read(self, text: str) -> "_Read":
        whole = self._tokenizer.encode(text)
        ids = cut(whole.ids, self.card.max_tokens, self.card.cut)
        return _Read(ids, cut(whole.word_ids, self.card.max_tokens, self.card.cut), len(whole) > len(ids))

    def _answer(self, text: str, read: "_Read", logits: NDArray[np.float32], projection: NDArray[np.float32]) -> Scored:
        scores = _softmax(logits / self.card.temperature)
        best = int(scores.argmax())
        return Scored(
            label=self.card.labels[best],
            score=float(scores[best]),
            scores=dict(zip(self.card.labels, scores.tolist(), strict=True)),
            tokens=len(read.ids),
            truncated=read.truncated,
            projection=projection,
            logits=logits,
            pieces=_continued(read.words),
            symbols=len(SYMBOLS.findall(text)) / max(1, len(text)),
        )


@dataclass(frozen=True, slots=True)
class _Read:
    """What a model reads of a text: token ids, the word that each belongs to, and whether that is not all."""

    ids: list[int]
    words: list[int | None]
    truncated: bool


def cut(ids: list[Token], most: int, kept: str) -> list[Token]:
    """What a model reads of a long text: at most `most` tokens, with the marks at both ends.

    `kept` is "head", or "ends" for a quarter from the head and the rest from the tail (after Sun et al. 2019, 5.3.1,
    who take 128 and 382 of 510). Training and serving cut with this one function.
    """
    if len(ids) <= most:
        return ids
    if kept == "head":
        return [*ids[: most - 1], ids[-1]]
    head = 1 + (most - 2) // 4
    return [*ids[:head], *ids[len(ids) - (most - head) :]]


def _options(threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # The graph is written as it is to be run; what onnxruntime would change takes time at each start, and some of it
    # is slower on a CPU, such as the fused SkipLayerNormalization.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    # A thread that spins while it waits burns the share of a CPU that Lambda grants, and is then throttled.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return options


def _check(session: Any, labels: int) -> None:
    """Refuse a graph whose inputs, outputs or number of classes are not those of a model folder."""
    inputs = [node.name for node in session.get_inputs()]
    outputs = {node.name: node.shape[-1] for node in session.get_outputs()}
    if sorted(inputs) != sorted(INPUTS) or sorted(outputs) != sorted(OUTPUTS):
        found = f"{', '.join(inputs)} → {', '.join(outputs)}"
        raise ModelRefused(f"the graph takes {found}, not {', '.join(INPUTS)} → {', '.join(OUTPUTS)}: export it again")
    if outputs["logits"] != labels:
        raise ModelRefused(f"the graph has {outputs['logits']} classes but the card names {labels} labels")
    if outputs["projection"] != CAPTURED:
        raise ModelRefused(f"the graph's projection is {outputs['projection']} wide, not {CAPTURED}: train again")


def _continued(words: Sequence[int | None]) -> float:
    """The share of tokens that continue the word of the token before, of all that belong to one."""
    own = [word for word in words if word is not None]
    return (len(own) - len(set(own))) / max(1, len(own))


def _softmax(values: NDArray[np.float32]) -> NDArray[np.float64]:
    powers = np.exp(values.astype(np.float64) - values.max())
    scores: NDArray[np.float64] = powers / powers.sum()
    return scores
