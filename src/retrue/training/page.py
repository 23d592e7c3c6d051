"""The model card as a page for people: Markdown from the same card that machines read."""

import itertools
import re
from importlib import resources
from typing import Any

import jinja2

from retrue import artifact
from retrue.artifact import Card

FEW = 0.10  # a slice whose 95 % interval is wider than this tells little
NARROW = 12  # labels up to which the confusion matrix is written in numbers


def render(card: Card) -> str:
    """The text of card.md; it names the pictures by their file names and tells nothing that the card does not hold."""
    shape = jinja2.Environment(
        autoescape=False,  # noqa: S701 - Markdown; what comes from outside goes through the filter `plain`
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    shape.filters |= {"plain": _plain, "percent": _percent, "number": _number}
    text = resources.files(__package__).joinpath("card.md.j2").read_text("utf-8")
    found, metric = card.metrics, card.settings["metric"]
    return shape.from_string(text).render(
        card=card,
        data=card.data,
        run=card.run,
        test=found["test"],
        validation=found["validation"],
        slices=[(by, list(parts)) for by, parts in itertools.groupby(found["slices"], lambda part: part["by"])],
        few=[part for part in found["slices"] if part["high"] - part["low"] > FEW],
        metric=metric,
        best=max(reversed(card.run["history"]), key=lambda entry: entry[metric]),  # of equals the later one is kept
        narrow=NARROW,
        files=artifact,
    )


def _plain(value: Any) -> str:
    """Text from outside, such as a label, without what Markdown or HTML would act on."""
    return re.sub(r"([\\`*_{}\[\]<>|#~])", r"\\\1", " ".join(str(value).split()))


def _percent(share: float) -> str:
    return f"{share:.1%}".replace("%", " %")


def _number(value: float) -> str:
    """Large and whole numbers with separators, others with four significant digits."""
    return f"{value:,.0f}" if isinstance(value, int) or value >= 1_000 else f"{value:.4g}"
