"""Near-duplicates have the same wording; texts that differ in a word, a number or a smiley never do."""

import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrue.wording import fold

PLAIN = "a plain film it's 3.5 of 10"


@pytest.mark.parametrize(
    "text",
    [
        "A plain film. It's 3.5 of 10!",
        "  a plain\u00a0film;\u0085it’s 3.5\n of 10…",
        "A plain film.<br /><br />It’s <i>3.5</i> of 10",
        "“A plain film?” It's 3.5, of 10...",
        "\ufeffＡ ｐｌａｉｎ ﬁlm, it&#8217;s 3.5 of 10&quot;",
        "A PLAIN FILM !!! 'it's' 3.5 of 10",
        "<p>a plain film,it's 3.5 of 10</p>",
    ],
)
def test_case_markup_spacing_unicode_form_and_punctuation_are_no_difference(text: str) -> None:
    assert fold(text) == PLAIN


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("I liked it", "I like it"),
        ("not good", "good"),
        ("good, not bad", "bad, not good"),
        ("we're here", "were here"),
        ("it'll do", "itll do"),
        (".5 stars", "5 stars"),
        ("3.5 stars", "35 stars"),
        ("1,000 of them", "1 000 of them"),
        ("so good :-)", "so good :-("),
        ("so good ;)", "so good :)"),
        ("so good ;-)", "so good"),
        ("so good:'(", "so good:("),
        ("so good ;_;", "so good ._."),
        ("so good ^.^", "so good ^^"),
        ("so good 👍", "so good 👎"),
        ("a film <sigh>", "a film <grin>"),
        ("a film <awful>", "a film"),
        ("good & bad", "good bad"),
        ("10/10", "10 10"),
        ("naïve", "naive"),
        ("!!!", "???"),
        ("<br />", "..."),
    ],
)
def test_another_word_number_or_smiley_is_another_wording(one: str, other: str) -> None:
    assert fold(one) != fold(other)


def test_a_text_of_marks_alone_stays_as_it_is() -> None:
    for text in ("!!!", "<br />", " . ", ""):
        assert fold(text) == text


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


simple = st.text(st.sampled_from("ab1 Bé.,;:!?'\"()-_<>/&\n"), max_size=20)


@given(simple, simple)
def test_texts_with_one_wording_have_the_same_words_in_the_same_order(one: str, other: str) -> None:
    # Markup aside: <b> is no word.
    texts = [text.replace("<", "(") for text in (one, other)]
    if fold(texts[0]) == fold(texts[1]):
        assert words(texts[0]) == words(texts[1])
    assert words(fold(texts[0])) == words(texts[0])


@given(simple)
def test_whatever_is_no_difference_changes_no_wording(text: str) -> None:
    changed = text.upper().replace(" ", " \n ")
    if text.upper().lower() == text.lower() and fold(text) != text:
        assert fold(changed) == fold(text)


def test_no_edit_that_turned_a_real_review_around_is_taken_for_a_copy_of_it(real_data: Path) -> None:
    rows = pq.read_table(real_data / "redistributable/imdb_counterfactual.parquet").to_pylist()
    wordings: dict[str, set[str]] = {}
    for row in rows:
        wordings.setdefault(fold(row["text"]), set()).add(re.sub(r"<br />|[\s.,;!?\"']+", "", row["text"]).lower())
    assert len(rows) > 4_000
    assert all(len(same) == 1 for same in wordings.values())
