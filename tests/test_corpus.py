"""The synthetic corpus is repeatable, varied, and neither trivial nor hopeless."""

import hashlib
from collections import Counter
from pathlib import Path

import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from retrue import corpus, dataset
from retrue.errors import BadInput


def accuracy(train: list[dataset.Example], test: list[dataset.Example], longest: int) -> float:
    model = make_pipeline(TfidfVectorizer(ngram_range=(1, longest), sublinear_tf=True), LogisticRegression(C=10))
    model.fit([row.text for row in train], [row.label for row in train])
    return float(model.score([row.text for row in test], [row.label for row in test]))


@pytest.mark.parametrize("domain", corpus.DOMAINS)
def test_the_same_seed_gives_the_same_reviews_and_another_seed_others(domain: str) -> None:
    one = corpus.generate(seed=5, rows=300, domain=domain)
    assert one == corpus.generate(seed=5, rows=300, domain=domain)
    assert one[:100] == corpus.generate(seed=5, rows=100, domain=domain)
    others = {row.text for row in corpus.generate(seed=6, rows=300, domain=domain)}
    assert len(others & {row.text for row in one}) < 3


def test_the_reviews_of_a_seed_are_the_same_on_every_python() -> None:
    text = "\n".join(row.text for domain in corpus.DOMAINS for row in corpus.generate(seed=0, rows=500, domain=domain))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "7fa9777635238b93"


@pytest.mark.parametrize("domain", corpus.DOMAINS)
def test_reviews_are_distinct_short_and_half_of_them_positive(domain: str) -> None:
    found = corpus.generate(seed=1, rows=3600, domain=domain)
    assert len({row.text for row in found}) == len({row.id for row in found}) == 3600
    assert Counter(row.label for row in found) == {"negative": 1800, "positive": 1800}
    words = [len(row.text.split()) for row in found]
    assert min(words) >= 15
    assert max(words) <= 60


@pytest.mark.parametrize("domain", corpus.DOMAINS)
def test_a_bag_of_words_does_well_but_not_perfectly(domain: str) -> None:
    parts = corpus.splits(seed=3, domain=domain)
    held = parts["validation"] + parts["test"]
    assert 0.83 <= accuracy(parts["train"], held, 1) <= 0.92
    assert 0.86 <= accuracy(parts["train"], held, 2) <= 0.96


def test_the_other_domain_costs_accuracy() -> None:
    films, kitchen = corpus.splits(seed=3)["train"], corpus.generate(seed=3, rows=600, domain="kitchen")
    assert 0.55 < accuracy(films, kitchen, 2) < 0.8


def test_splits_are_ready_to_write_and_lose_nothing(tmp_path: Path) -> None:
    folder = dataset.write(tmp_path, corpus.splits(), name="x", source="y", synthetic=True, notice=corpus.NOTICE)
    manifest = dataset.read_manifest(folder)
    assert {split: sum(found.values()) for split, found in manifest.counts.items()} == {
        "train": 2880, "validation": 360, "test": 360,
    }  # fmt: skip
    assert sum(manifest.dropped.values()) == 0
    assert "Synthetic" in manifest.notice


def test_an_unknown_domain_is_refused_with_those_there_are() -> None:
    with pytest.raises(BadInput, match="no domain 'cars': use one of films, kitchen"):
        corpus.generate(seed=0, rows=1, domain="cars")
