"""The model card as a page and its pictures."""

import dataclasses
import itertools
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from retrue import artifact
from retrue.artifact import Card
from retrue.training import page, pictures


@pytest.fixture(scope="module")
def card(tiny_model: Path) -> Card:
    return artifact.read_card(tiny_model)


def renamed(card: Card, labels: list[str]) -> Card:
    """The card as it would be with other names for the two labels."""
    names = dict(zip(card.labels, labels, strict=True))
    splits = {
        split: {
            **card.metrics[split],
            **{key: {names[k]: v for k, v in card.metrics[split][key].items()} for key in ("f1", "f1_intervals")},
        }
        for split in ("validation", "test")
    }
    parts = [{**part, "part": names.get(part["part"], part["part"])} for part in card.metrics["slices"]]
    return dataclasses.replace(card, labels=labels, metrics={**card.metrics, **splits, "slices": parts})


def test_the_page_tells_what_the_card_holds(card: Card, tiny_model: Path) -> None:
    text = (tiny_model / artifact.PAGE).read_text()
    assert text == page.render(card)
    test = card.metrics["test"]
    assert text.startswith("# Model card: negative or positive\n")
    assert f"| test | {test['n']} | {test['accuracy']:.1%}".replace("%", " %") in text
    assert card.metrics["int8"]["reason"][4:] in text
    for said in (
        "**Synthetic data.**",
        card.dataset,
        card.notice,
        card.data["notice"],
        "0 duplicates",
        f"| seed | {card.run['seed']} |",
    ):
        assert said in text
    low, high = test["f1_macro_interval"]
    assert low < test["f1_macro"] < high
    assert f"| {test['f1_macro']:.3f} | {low:.3f} to {high:.3f} |" in text
    for part in card.metrics["slices"]:
        assert f"| {part['part']} | {part['n']} |" in text


def test_every_picture_of_the_page_is_in_the_folder(tiny_model: Path) -> None:
    named = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", (tiny_model / artifact.PAGE).read_text())
    assert sorted([artifact.PAGE, *named]) == sorted(artifact.REPORT)
    assert all((tiny_model / name).is_file() for name in named)


def test_every_table_of_the_page_has_as_many_cells_in_each_row(card: Card) -> None:
    lines = page.render(renamed(card, ["a|b", "c\nd"])).splitlines()
    for above, line in itertools.pairwise(lines):
        if above.startswith("|") and line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) == len(re.findall(r"(?<!\\)\|", above)), line


def test_text_from_outside_is_not_acted_on(card: Card) -> None:
    data = {**card.data, "source": "[here](http://example.com) <img src=x>", "notice": "`code` **bold**"}
    text = page.render(dataclasses.replace(renamed(card, ["<b>", "# title"]), data=data))
    assert r"\[here\](http://example.com) \<img src=x\>" in text
    assert r"\`code\` \*\*bold\*\*" in text
    assert not re.search(r"(?<!\\)<(b|img)\b", text)


def test_the_step_of_the_kept_weights_is_the_later_of_two_equally_good_ones(card: Card) -> None:
    history = [{"step": step, "accuracy": 0.9, "f1_macro": 0.9, "loss": 0.1} for step in (11, 22)]
    history.append({**history[0], "step": 33, "accuracy": 0.8})
    text = page.render(dataclasses.replace(card, run={**card.run, "history": history}))
    assert "was 90.0 %, at step 22; these weights were kept." in text


def test_a_part_with_few_rows_is_named_among_the_limits(card: Card) -> None:
    small = {"by": "source", "part": "feedback", "n": 12, "accuracy": 0.75, "low": 0.428, "high": 0.945}
    text = page.render(dataclasses.replace(card, metrics={**card.metrics, "slices": [small]}))
    assert 'source "feedback" 42.8 % to 94.5 % (12 rows).' in text.partition("## Limits")[2]
    sure = {**small, "n": 1200, "low": 0.724, "high": 0.775}
    text = page.render(dataclasses.replace(card, metrics={**card.metrics, "slices": [sure]}))
    assert "On few rows" not in text


def test_real_data_are_not_called_synthetic(card: Card) -> None:
    text = page.render(dataclasses.replace(card, data={**card.data, "synthetic": False, "source": "a shop"}))
    assert "ynthetic" not in text.replace(card.data["notice"], "")


def test_pictures_are_the_same_bytes_for_the_same_card(card: Card, tiny_model: Path, tmp_path: Path) -> None:
    pictures.draw(card, tmp_path)
    drawn = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert drawn == {name: (tiny_model / name).read_bytes() for name in artifact.REPORT if name != artifact.PAGE}


def test_pictures_have_no_background_and_no_date(tiny_model: Path) -> None:
    for name in artifact.REPORT[1:]:
        root = ElementTree.fromstring((tiny_model / name).read_text())  # noqa: S314 - written by this very test run
        assert "date" not in {element.tag.rpartition("}")[2] for element in root.iter()}
        (patch,) = [element for element in root.iter() if element.get("id") == "patch_1"]
        assert "fill: none" in patch[0].get("style", "")


def test_labels_of_any_script_are_drawn_as_they_are(card: Card, tmp_path: Path) -> None:
    pictures.draw(renamed(card, ["天気", "$5 & <b>"]), tmp_path)
    words = ElementTree.fromstring((tmp_path / artifact.CONFUSION).read_text()).itertext()  # noqa: S314
    assert {"天気", "$5 & <b>"} <= {word.strip() for word in words}
