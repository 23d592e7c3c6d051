"""The classifier, on a small real model."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from retrue import artifact
from retrue.artifact import CAPTURED
from retrue.classifier import Classifier
from retrue.errors import ModelRefused
from retrue.records import new_id

TEXTS = ["A quiet film, and not bad at all.", "Dull.", "The cast is great but the plot is a mess, and it is too long."]


@pytest.fixture(scope="module")
def classifier(tiny_model: Path) -> Classifier:
    return Classifier.open(tiny_model)


@pytest.fixture
def copy(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "copy"))


def change_card(folder: Path, **values: object) -> None:
    card = json.loads((folder / artifact.CARD).read_text())
    (folder / artifact.CARD).write_text(json.dumps({**card, **values}))
    artifact.seal(folder)


def test_scores_are_probabilities_of_the_cards_labels(classifier: Classifier) -> None:
    for text in TEXTS:
        scored = classifier.score(text)
        assert list(scored.scores) == classifier.card.labels
        assert sum(scored.scores.values()) == pytest.approx(1)
        assert scored.score == max(scored.scores.values()) == scored.scores[scored.label]
        assert scored.logits.shape == (len(classifier.card.labels),)
        assert scored.projection.shape == (CAPTURED,)
        assert scored.projection.dtype == scored.logits.dtype == np.float32


def test_scores_are_logits_divided_by_the_cards_temperature(copy: Path) -> None:
    change_card(copy, temperature=2.5)
    scored = Classifier.open(copy).score(TEXTS[0])
    powers = np.exp(scored.logits / 2.5)
    assert list(scored.scores.values()) == pytest.approx(powers / powers.sum(), abs=1e-6)


def test_a_model_gives_its_golden_answers(classifier: Classifier, tiny_model: Path) -> None:
    golden = json.loads((tiny_model / artifact.GOLDEN).read_text())
    assert golden
    for item in golden:
        assert classifier.score(item["text"]).scores == pytest.approx(item["scores"], abs=1e-4)


def test_an_answer_does_not_depend_on_what_was_asked_before(classifier: Classifier, tiny_model: Path) -> None:
    together = [classifier.score(text).logits for text in TEXTS]
    for text, logits in zip(TEXTS, together, strict=True):
        alone = Classifier(tiny_model).score(text).logits
        assert alone.tobytes() == logits.tobytes()


def test_many_texts_get_the_answers_that_each_gets_alone_in_their_order(classifier: Classifier) -> None:
    texts = [*TEXTS, "", "good . " * 500, *TEXTS[::-1], *(f"a film , and not bad {word} ." for word in "abcdefgh" * 20)]
    for text, found in zip(texts, classifier.score_many(texts), strict=True):
        alone = classifier.score(text)
        assert found.logits.tobytes() == alone.logits.tobytes()
        np.testing.assert_allclose(found.projection, alone.projection, atol=1e-5)
        facts = ("label", "scores", "tokens", "truncated", "pieces", "symbols")
        assert [getattr(found, name) for name in facts] == [getattr(alone, name) for name in facts]
    assert classifier.score_many([]) == []


def test_texts_of_one_length_run_together_within_the_budget(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = []

    class Watched:
        def run(self, outputs: list[str], fed: dict[str, Any]) -> Any:
            shapes.append(fed["input_ids"].shape)
            return session.run(outputs, fed)

    session = classifier._session
    monkeypatch.setattr(classifier, "_session", Watched())
    monkeypatch.setattr("retrue.classifier.BUDGET", 40)
    classifier.score_many(["a film", "film", *["a film"] * 20, ". " * 60])
    most = classifier.card.max_tokens
    assert sorted(shapes) == sorted([(10, 4), (10, 4), (1, 4), (1, 3), (1, min(62, most))])


def test_more_threads_give_the_same_answer(classifier: Classifier, tiny_model: Path) -> None:
    threaded = Classifier.open(tiny_model, threads=2)
    assert threaded.score(TEXTS[2]).scores == pytest.approx(classifier.score(TEXTS[2]).scores, abs=1e-6)


def test_a_text_with_nothing_in_it_gives_the_two_ends(classifier: Classifier) -> None:
    assert classifier.score("").tokens == 2


def test_a_long_text_is_read_to_the_limit_and_still_ends_as_a_text_does(classifier: Classifier) -> None:
    most = classifier.card.max_tokens
    full, long = classifier.score(". " * (most - 2)), classifier.score(". " * 5_000)
    assert (full.tokens, full.truncated) == (most, False)
    assert (long.tokens, long.truncated) == (most, True)
    assert long.logits.tobytes() == full.logits.tobytes()


def test_pieces_are_the_share_of_tokens_read_that_continue_a_word(classifier: Classifier) -> None:
    assert classifier.score("").pieces == 0.0
    assert classifier.score("the film").pieces == 0.0
    assert classifier.score("the qqqq film .").pieces == 3 / 7
    most = classifier.card.max_tokens
    # What lies between the ends of a long text is not read.
    assert classifier.score(". " * most + "qqqq " * 5 + ". " * most).pieces == 0.0
    assert classifier.score("q" * 70).pieces == (most - 3) / (most - 2)


def test_symbols_are_the_share_of_characters_that_are_neither_letter_digit_nor_white_space(
    classifier: Classifier,
) -> None:
    assert classifier.score("").symbols == 0.0
    assert classifier.score("Ça va, 42\u00a0fois\t好 ß").symbols == 1 / 18
    assert classifier.score("<b>_!").symbols == 4 / 5


def test_a_record_keeps_what_the_monitor_wants(classifier: Classifier) -> None:
    scored = classifier.score("The qqqq film, again!")
    kept = scored.record(new_id(5, bytes(10)), "m", "http")
    assert kept.projection == pytest.approx(scored.projection.tolist(), abs=1e-6)
    assert (kept.pieces, kept.symbols) == (round(scored.pieces, 6), round(scored.symbols, 6))
    assert min(kept.pieces, kept.symbols) > 0


def test_the_model_is_named_after_its_manifest(classifier: Classifier, tiny_model: Path) -> None:
    assert classifier.model == artifact.identity(tiny_model)


@pytest.mark.parametrize("name", artifact.FILES)
def test_an_altered_file_is_refused(copy: Path, name: str) -> None:
    with (copy / name).open("ab") as file:
        file.write(b" ")
    with pytest.raises(ModelRefused, match=name):
        Classifier.open(copy)


def test_a_folder_without_a_manifest_is_refused(copy: Path) -> None:
    (copy / artifact.MANIFEST).unlink()
    with pytest.raises(ModelRefused, match=r"manifest\.json"):
        Classifier.open(copy)


def test_a_card_with_other_labels_than_the_graph_is_refused(copy: Path) -> None:
    change_card(copy, labels=["a", "b", "c"])
    with pytest.raises(ModelRefused, match="2 classes but the card names 3"):
        Classifier.open(copy)


@pytest.mark.parametrize(
    ("input", "output", "width", "reason"),
    [
        ("input_ids", "scores", CAPTURED, "scores"),
        ("tokens", "projection", CAPTURED, "tokens"),
        ("input_ids", "projection", 3, "3 wide"),
    ],
)
def test_a_graph_of_another_shape_is_refused(copy: Path, input: str, output: str, width: int, reason: str) -> None:
    ids = [helper.make_tensor_value_info(input, TensorProto.INT64, [1, None])]
    outputs = [
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 2]),
        helper.make_tensor_value_info(output, TensorProto.FLOAT, [1, width]),
    ]
    nodes = []
    for made, size in (("logits", 2), (output, width)):
        zeros = helper.make_tensor(made, TensorProto.FLOAT, [1, size], [0.0] * size)
        nodes.append(helper.make_node("Constant", [], [made], value=zeros))
    graph = helper.make_graph(nodes, "other", ids, outputs)
    made_of = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(made_of, copy / artifact.MODEL)
    artifact.seal(copy)
    with pytest.raises(ModelRefused, match=reason):
        Classifier.open(copy)


def test_answering_needs_neither_torch_nor_scipy() -> None:
    heavy = ("torch", "transformers", "scipy", "sklearn", "mlflow", "boto3", "onnx")
    code = f"import sys, retrue.classifier; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
