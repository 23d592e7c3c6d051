"""A model folder: whole and unaltered, or refused."""

import shutil
from pathlib import Path

import pytest

from retrue import artifact
from retrue.errors import ModelRefused


@pytest.fixture
def copy(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "copy"))


def test_a_folder_is_what_its_manifest_says(tiny_model: Path) -> None:
    assert artifact.verify(tiny_model) == artifact.identity(tiny_model)


@pytest.mark.parametrize("name", [*artifact.FILES, *artifact.REPORT])
def test_a_file_with_one_bit_turned_is_found(copy: Path, name: str) -> None:
    body = bytearray((copy / name).read_bytes())
    body[len(body) // 2] ^= 1
    (copy / name).write_bytes(body)
    with pytest.raises(ModelRefused, match=rf"is not whole \({name}\): promote another one"):
        artifact.verify(copy)


@pytest.mark.parametrize("name", artifact.FILES)
def test_a_file_that_is_missing_is_found(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(ModelRefused, match=rf"is not whole \({name}\)"):
        artifact.verify(copy)
    with pytest.raises(ModelRefused, match=f"lacks {name}: train again"):
        artifact.seal(copy)


def test_files_for_people_may_be_left_behind(copy: Path) -> None:
    model = artifact.identity(copy)
    for path in copy.iterdir():
        if path.name not in artifact.SERVED:
            path.unlink()
    assert artifact.verify(copy) == model


def test_a_file_for_people_that_was_never_sealed_is_found(copy: Path) -> None:
    for name in artifact.REPORT:
        (copy / name).unlink()
    artifact.seal(copy)
    (copy / artifact.PAGE).write_text("# a better model card")
    with pytest.raises(ModelRefused, match=r"is not whole \(card.md\)"):
        artifact.verify(copy)


BOUND = {artifact.MODEL: "m", artifact.WEIGHTS: "w", artifact.TOKENIZER: "t"}


@pytest.mark.parametrize(
    ("files", "max_tokens", "cut"),
    [
        *(({**BOUND, name: "other"}, 64, "head") for name in BOUND),
        ({artifact.MODEL: "m", artifact.TOKENIZER: "t"}, 64, "head"),  # a model whose weights were in its graph
        (BOUND, 65, "head"),
        (BOUND, 64, "ends"),
    ],
)
def test_what_a_reference_is_bound_to_changes_with_all_that_decides_a_texts_columns(
    files: dict[str, str], max_tokens: int, cut: str
) -> None:
    usual = artifact.bound(BOUND, 64, "head")
    assert artifact.bound(files, max_tokens, cut) != usual == artifact.bound(dict(BOUND), 64, "head")
    assert artifact.bound({**BOUND, artifact.CARD: "c"}, 64, "head") == usual


def test_an_altered_manifest_is_another_model(copy: Path) -> None:
    model = artifact.identity(copy)
    (copy / artifact.MANIFEST).write_text((copy / artifact.MANIFEST).read_text() + "\n")
    assert artifact.identity(copy) != model
    (copy / artifact.MANIFEST).unlink()
    with pytest.raises(ModelRefused, match=r"holds no manifest.json, so it is not a model folder"):
        artifact.verify(copy)
