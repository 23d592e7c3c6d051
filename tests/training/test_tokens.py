from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from retrue import classifier, corpus
from retrue.classifier import Classifier
from retrue.training import tokens


@given(st.integers(2, 400), st.integers(8, 128), st.sampled_from(["head", "ends"]))
def test_a_cut_keeps_the_marks_at_both_ends_and_the_order_between(length: int, most: int, kept: str) -> None:
    whole = list(range(length))
    found = classifier.cut(whole, most, kept)
    assert len(found) == min(length, most)
    assert (found[0], found[-1]) == (whole[0], whole[-1])
    assert found == sorted(set(found))


def test_the_head_or_a_quarter_of_it_and_the_tail_are_kept() -> None:
    assert classifier.cut(list(range(100)), 10, "head") == [0, 1, 2, 3, 4, 5, 6, 7, 8, 99]
    assert classifier.cut(list(range(100)), 10, "ends") == [0, 1, 2, 93, 94, 95, 96, 97, 98, 99]
    assert classifier.cut(list(range(10)), 10, "ends") == list(range(10))


@pytest.mark.parametrize("kept", ["head", "ends"])
def test_tokens_are_those_that_the_classifier_reads_and_come_from_the_file(
    tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: str
) -> None:
    monkeypatch.setattr(tokens, "CHUNK", 7)
    tokenizer = Tokenizer.from_file(str(tiny_encoder / "tokenizer.json"))
    texts = [row.text for row in corpus.generate(seed=1, rows=20, domain="films")] + [""]
    made = tokens.write(tmp_path / "made", tokenizer, texts, 24, kept)
    assert len(made) == 21
    for row, text in enumerate(texts):
        assert made[row].tolist() == classifier.cut(tokenizer.encode(text).ids, 24, kept)
    assert made.lengths.tolist() == [len(made[row]) for row in range(21)]
    assert isinstance(made.ids, np.memmap)
    written = (tmp_path / "made" / tokens.IDS).stat().st_mtime_ns
    again = tokens.write(tmp_path / "made", tokenizer, texts, 24, kept)
    assert (again.ids == made.ids).all()
    assert (tmp_path / "made" / tokens.IDS).stat().st_mtime_ns == written
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_a_model_trained_on_both_ends_is_served_both_ends(tiny_model: Path, tmp_path: Path) -> None:
    import json
    import shutil

    folder = tmp_path / "ends"
    shutil.copytree(tiny_model, folder)
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps({**card, "cut": "ends", "max_tokens": 16}))
    model = Classifier(folder)
    words = " ".join(row.text for row in corpus.generate(seed=4, rows=6, domain="films"))
    head, tail = words.split()[:1], words.split()[-40:]
    scored = model.score(words)
    assert (scored.tokens, scored.truncated) == (16, True)
    # Fourteen tokens are read: three from the head, eleven from the tail; the middle does not matter.
    middle = model.score(" ".join([*words.split()[:20], "nothing", "of", "this", *tail]))
    assert np.array_equal(scored.logits, middle.logits)
    assert not np.array_equal(scored.logits, model.score(" ".join(head)).logits)
