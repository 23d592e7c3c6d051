import dataclasses
import gzip
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from retrue import dataset
from retrue.dataset import Example
from retrue.errors import BadDataset, TrainingFailed, WrongSetting
from retrue.training import finetune
from retrue.training.finetune import Settings

QUICK = Settings(learning_rate=3e-3, epochs=1, batch_size=16, max_tokens=32, max_rows=128)


def train(tiny_encoder: Path, tiny_dataset: Path, out: Path, **changes: object) -> finetune.Result:
    return finetune.finetune(tiny_encoder, tiny_dataset, dataclasses.replace(QUICK, **changes), out)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(
    tiny_encoder: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(tiny_encoder, tiny_dataset, tmp_path / name, seed=seed)
    a, b, c = (weights(tmp_path / name) for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], c[name]) for name in a)


def test_training_leaves_the_random_numbers_of_the_caller_alone(
    tiny_encoder: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    train(tiny_encoder, tiny_dataset, tmp_path / "out")
    assert torch.equal(torch.rand(3), wanted)


def test_frozen_layers_keep_the_encoders_weights_and_the_others_move(
    tiny_encoder: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    train(tiny_encoder, tiny_dataset, tmp_path / "out", frozen_layers=1)
    before, after = weights(tiny_encoder), weights(tmp_path / "out")
    still = {name for name, value in before.items() if torch.equal(value, after[f"distilbert.{name}"])}
    assert still == {name for name in before if name.startswith(("embeddings.", "transformer.layer.0."))}


def test_the_best_epoch_is_kept_and_patience_ends_the_training(
    tiny_encoder: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    # So small a rate changes no answer: the second epoch brings no gain.
    result = train(tiny_encoder, tiny_dataset, tmp_path / "out", learning_rate=1e-9, epochs=5, patience=1)
    assert [entry["epoch"] for entry in result.history] == [1, 2]
    assert result.accuracy == result.history[0]["accuracy"]
    assert result.steps == 16


def test_the_result_counts_rows_steps_and_tokens(tiny_encoder: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    told: list[float] = []
    result = finetune.finetune(tiny_encoder, tiny_dataset, QUICK, tmp_path / "out", lambda share, _: told.append(share))
    assert (result.rows, result.steps, result.labels) == (128, 8, ["negative", "positive"])
    assert result.encoder == "tiny"
    assert result.seconds > 0
    assert result.tokens_per_second > 0
    assert told == [step / 8 for step in range(1, 9)]
    assert finetune.Result.from_json(result.to_json()) == result


def test_the_limit_of_minutes_ends_a_training_early_and_still_gives_a_model(
    tiny_encoder: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    result = train(tiny_encoder, tiny_dataset, tmp_path / "out", epochs=1000, minutes=1e-6)
    assert (result.steps, len(result.history)) == (1, 1)
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_batches_hold_every_row_once_and_rows_of_like_length_together() -> None:
    lengths = np.random.default_rng(0).integers(1, 200, 1000).tolist()
    batches = list(finetune._batches(lengths, 16, np.random.default_rng(1)))
    assert sorted(row for batch in batches for row in batch) == list(range(1000))
    padded = sum(len(batch) * max(lengths[row] for row in batch) for batch in batches)
    assert padded < 1.1 * sum(lengths)
    other = list(finetune._batches(lengths, 16, np.random.default_rng(2)))
    assert [batch.tolist() for batch in batches] != [batch.tolist() for batch in other]


def test_a_rate_that_blows_up_is_reported_with_what_to_change(
    tiny_encoder: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    with pytest.raises(TrainingFailed, match="lower learning_rate"):
        train(tiny_encoder, tiny_dataset, tmp_path / "out", learning_rate=1e30)


def test_settings_that_do_not_fit_the_encoder_are_refused(
    tiny_encoder: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    with pytest.raises(WrongSetting, match="max_tokens is 513, but the encoder has 512 positions"):
        train(tiny_encoder, tiny_dataset, tmp_path / "out", max_tokens=513)
    with pytest.raises(WrongSetting, match="frozen_layers is 3, but the encoder has 2 layers"):
        train(tiny_encoder, tiny_dataset, tmp_path / "out", frozen_layers=3)


def test_settings_come_from_texts_and_a_misspelt_name_is_an_error() -> None:
    given = {"learning_rate": "0.0003", "epochs": "2", "encoder_name": "somebody/one", "sagemaker_region": "x"}
    assert finetune.chosen(given) == Settings(learning_rate=0.0003, epochs=2, encoder_name="somebody/one")
    with pytest.raises(WrongSetting, match="unknown training settings learning_rat: there are encoder_name"):
        finetune.chosen({"learning_rat": "1"})
    with pytest.raises(WrongSetting, match="EPOCHS is not a whole number"):
        finetune.chosen({"epochs": "two"})
    with pytest.raises(WrongSetting, match="epochs must be at least 1; batch_size must be at least 1"):
        finetune.chosen({"epochs": "0", "batch_size": "-1"})


@pytest.mark.slow
def test_training_on_real_reviews_beats_chance_clearly(minilm: Path, real_data: Path, tmp_path: Path) -> None:
    from pyarrow import parquet

    def rows(file: str, count: int) -> list[Example]:
        table = parquet.read_table(real_data / file, columns=["text", "label"])
        chosen = torch.randperm(len(table), generator=torch.Generator().manual_seed(0))[:count].tolist()
        return [Example(row["text"], ("negative", "positive")[row["label"]]) for row in table.take(chosen).to_pylist()]

    train_rows = rows("imdb_train.parquet", 900)
    splits = {"train": train_rows[:600], "validation": train_rows[600:], "test": rows("imdb_test.parquet", 50)}
    folder = dataset.write(tmp_path, splits, name="imdb", source="a sample of IMDB reviews")
    settings = Settings(learning_rate=3e-4, epochs=1, batch_size=16, max_tokens=128)
    result = finetune.finetune(minilm, folder, settings, tmp_path / "out")
    # 300 coin tosses give more than 0.63 once in a hundred thousand times.
    assert result.accuracy > 0.65


def test_a_dataset_without_validation_rows_is_refused(tiny_encoder: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    folder = tmp_path / "dataset"
    shutil.copytree(tiny_dataset, folder)
    (folder / "validation.jsonl.gz").write_bytes(gzip.compress(b""))
    with pytest.raises(BadDataset, match="0 validation rows"):
        train(tiny_encoder, folder, tmp_path / "out")
