import dataclasses
import gzip
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from retrue import dataset
from retrue.dataset import Example
from retrue.errors import BadDataset, Interrupted, TrainingFailed, WrongSetting
from retrue.training import checkpoint, finetune
from retrue.training.settings import Settings

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


def test_of_equally_good_states_the_later_one_is_kept(tiny_encoder: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    # So small a rate moves weights, and no answer.
    settings = dataclasses.replace(QUICK, learning_rate=1e-7, epochs=2)
    result = finetune.finetune(tiny_encoder, tiny_dataset, settings, tmp_path / "out", checkpoints=tmp_path / "kept")
    assert result.history[0]["accuracy"] == result.history[1]["accuracy"]
    last = torch.load(tmp_path / "kept/state.pt", weights_only=True)["state"]["learner"]["model"]
    assert all(torch.equal(value, last[name]) for name, value in weights(tmp_path / "out").items())


def stopping(steps: int) -> Callable[[], bool]:
    """The wish to stop after so many steps."""
    asked = itertools.count(1)
    return lambda: next(asked) >= steps


@pytest.fixture(scope="module")
def dropping(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny encoder with dropout, which needs the very random numbers that come next."""
    folder = tmp_path_factory.mktemp("dropping") / "encoder"
    shutil.copytree(tiny_encoder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dropout": 0.2}))
    return folder


@pytest.mark.parametrize("steps", [[3], [8], [1, 2, 9]])
def test_a_training_that_was_stopped_goes_on_to_the_same_weights(
    dropping: Path, tiny_dataset: Path, tmp_path: Path, steps: list[int]
) -> None:
    settings = dataclasses.replace(QUICK, epochs=2)
    whole = finetune.finetune(dropping, tiny_dataset, settings, tmp_path / "whole")
    kept = tmp_path / "checkpoints"
    for count in steps:
        with pytest.raises(Interrupted, match="stopped from outside after step"):
            finetune.finetune(
                dropping, tiny_dataset, settings, tmp_path / "out", checkpoints=kept, stop=stopping(count)
            )
        assert not (tmp_path / "out").exists()
    result = finetune.finetune(dropping, tiny_dataset, settings, tmp_path / "out", checkpoints=kept)
    a, b = weights(tmp_path / "whole"), weights(tmp_path / "out")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert (result.steps, result.history, result.losses) == (whole.steps, whole.history, whole.losses)
    # Once more: it is over, so nothing is trained.
    again = finetune.finetune(dropping, tiny_dataset, settings, tmp_path / "again", checkpoints=kept, stop=stopping(1))
    assert again.history == whole.history
    assert all(torch.equal(value, a[name]) for name, value in weights(tmp_path / "again").items())


def test_a_training_that_pauses_goes_on_to_the_same_weights(dropping: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    settings = dataclasses.replace(QUICK, epochs=2, evaluations=2)
    finetune.finetune(dropping, tiny_dataset, settings, tmp_path / "whole")
    for until, step in ((0.25, 4), (0.5, 8)):
        trial = dataclasses.replace(settings, until=until)
        paused = finetune.finetune(
            dropping, tiny_dataset, trial, tmp_path / "out", checkpoints=tmp_path / "kept", cache=tmp_path / "tokens"
        )
        assert (paused.paused, paused.steps, paused.history[-1]["step"]) == (True, step, step)
        assert paused.metric == max(entry["accuracy"] for entry in paused.history)
        assert not (tmp_path / "out").exists()
    made = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "tokens").iterdir()}
    assert len(made) == 2  # train and validation
    result = finetune.finetune(
        dropping, tiny_dataset, settings, tmp_path / "out", checkpoints=tmp_path / "kept", cache=tmp_path / "tokens"
    )
    assert not result.paused
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "tokens").iterdir()} == made
    a, b = weights(tmp_path / "whole"), weights(tmp_path / "out")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_pause_between_two_evaluations_changes_nothing_of_what_follows(
    tiny_encoder: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    # So small a rate changes no answer: the second evaluation brings no gain, and ends the training.
    settings = dataclasses.replace(QUICK, learning_rate=1e-9, epochs=4, patience=1)
    whole = finetune.finetune(tiny_encoder, tiny_dataset, settings, tmp_path / "whole")
    assert [entry["step"] for entry in whole.history] == [8, 16]
    for until, told in ((0.1, [4]), (0.4, [8, 13])):
        trial = dataclasses.replace(settings, until=until)
        for _ in range(2):  # one that has paused there is told alike
            paused = finetune.finetune(
                tiny_encoder, tiny_dataset, trial, tmp_path / "out", checkpoints=tmp_path / "kept"
            )
            assert [entry["step"] for entry in paused.history] == told
            assert paused.metric == paused.accuracy == paused.history[-1]["accuracy"]
    result = finetune.finetune(tiny_encoder, tiny_dataset, settings, tmp_path / "out", checkpoints=tmp_path / "kept")
    assert (result.steps, result.history, result.metric) == (whole.steps, whole.history, whole.metric)
    a, b = weights(tmp_path / "whole"), weights(tmp_path / "out")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_patience_counts_epochs_also_where_they_have_fewer_steps_than_evaluations(
    tiny_encoder: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    result = train(
        tiny_encoder, tiny_dataset, tmp_path / "out", learning_rate=1e-9, epochs=9, evaluations=30, patience=1
    )
    assert [entry["step"] for entry in result.history] == list(range(1, 10))


def test_a_pause_without_a_place_to_pause_in_is_refused(tiny_encoder: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(WrongSetting, match="until is below 1, which needs a folder for checkpoints"):
        train(tiny_encoder, tiny_dataset, tmp_path / "out", until=0.5)


def test_the_state_of_another_training_is_not_taken_up(tiny_encoder: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    with pytest.raises(Interrupted):
        finetune.finetune(tiny_encoder, tiny_dataset, QUICK, tmp_path / "a", checkpoints=kept, stop=stopping(2))
    other = dataclasses.replace(QUICK, learning_rate=1e-3)
    result = finetune.finetune(tiny_encoder, tiny_dataset, other, tmp_path / "b", checkpoints=kept)
    train(tiny_encoder, tiny_dataset, tmp_path / "c", learning_rate=1e-3)
    b, c = weights(tmp_path / "b"), weights(tmp_path / "c")
    assert result.steps == 8
    assert all(torch.equal(b[name], c[name]) for name in b)


def test_a_damaged_checkpoint_is_named_with_what_to_do(tiny_encoder: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "state.pt").write_bytes(b"half a file")
    with pytest.raises(TrainingFailed, match=r"state\.pt cannot be read: delete it to begin anew"):
        finetune.finetune(tiny_encoder, tiny_dataset, QUICK, tmp_path / "out", checkpoints=tmp_path)


def test_a_checkpoint_with_a_wrong_byte_is_not_taken_up(tmp_path: Path) -> None:
    state = {"numbers": torch.arange(100)}
    checkpoint.save(tmp_path, "this", state)
    file = tmp_path / "state.pt"
    whole = file.read_bytes()
    place = whole.index(state["numbers"].numpy().tobytes()) + 80
    file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(TrainingFailed, match="delete it to begin anew"):
        checkpoint.load(tmp_path, "this")
    file.write_bytes(whole)
    assert torch.equal(checkpoint.load(tmp_path, "this")["numbers"], state["numbers"])  # type: ignore[index]


def test_checkpoints_are_written_while_the_training_goes_on(
    tiny_encoder: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    seen: list[bool] = []
    finetune.finetune(
        tiny_encoder, tiny_dataset, dataclasses.replace(QUICK, checkpoint_minutes=0.0), tmp_path / "out",
        lambda *_: seen.append((tmp_path / "kept/state.pt").is_file()), checkpoints=tmp_path / "kept",
    )  # fmt: skip
    assert seen == [True] * 8


def test_passes_under_a_budget_add_up_to_the_same_step(
    tiny_encoder: Path, tiny_dataset: Path, tmp_path: Path, fp32: None
) -> None:
    # Without dropout of the head, the only difference is the order of sums.
    folder = tmp_path / "encoder"
    shutil.copytree(tiny_encoder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "seq_classif_dropout": 0.0}))
    results = [train(folder, tiny_dataset, tmp_path / str(size), batch_tokens=size) for size in (8_192, 64)]
    losses = [np.array(result.losses) for result in results]
    assert results[1].padding <= results[0].padding
    assert np.abs(losses[0] - losses[1]).max() < 1e-4


def test_each_layer_further_down_learns_more_slowly(tiny_encoder: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    from retrue.training.learner import _classifier, _groups

    settings = dataclasses.replace(QUICK, layer_decay=0.5)
    model = _classifier(tiny_encoder, ["a", "b"], settings)
    scale = {id(p): group["scale"] for group in _groups(model, settings) for p in group["params"]}
    assert len(scale) == len(list(model.parameters()))
    expected = {"embeddings": 0.125, "transformer.layer.0": 0.25, "transformer.layer.1": 0.5, "classifier": 1.0}
    for name, parameter in model.named_parameters():
        (wanted,) = (value for part, value in expected.items() if part in name)
        assert scale[id(parameter)] == wanted, name


def test_smoothing_of_labels_and_another_cut_change_the_training(
    tiny_encoder: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    plain = train(tiny_encoder, tiny_dataset, tmp_path / "plain", max_tokens=16)
    smooth = train(tiny_encoder, tiny_dataset, tmp_path / "smooth", max_tokens=16, label_smoothing=0.2)
    head = train(tiny_encoder, tiny_dataset, tmp_path / "head", max_tokens=16, cut="head")
    assert plain.losses != smooth.losses
    assert plain.losses != head.losses


def test_gains_under_the_least_gain_count_as_none(tiny_encoder: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    # No gain reaches 1, so the second evaluation after the first is the last; the best is kept all the same.
    result = train(
        tiny_encoder,
        tiny_dataset,
        tmp_path / "out",
        epochs=9,
        evaluations=2,
        patience=1,
        min_gain=1.0,
        metric="f1_macro",
    )
    assert [entry["step"] for entry in result.history] == [4, 8, 12]
    assert result.metric == max(entry["f1_macro"] for entry in result.history)


def test_recent_rows_are_drawn_as_often_as_the_replay_share_says(
    tiny_encoder: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    splits = {split: dataset.read(tiny_dataset, split) for split in dataset.SPLITS}
    marked = [dataclasses.replace(row, source="feedback") if n < 40 else row for n, row in enumerate(splits["train"])]
    folder = dataset.write(tmp_path, {**splits, "train": marked[:200]}, name="mixed", source="a test")
    drawn: list[int] = []
    lengths = np.full(200, 10)
    recent = np.array([row.source == "feedback" for row in dataset.read(folder, "train")])
    for rows in finetune._plan(dataclasses.replace(QUICK, replay_share=0.5), lengths, recent, 0):
        drawn += rows.tolist()
    assert (len(drawn), int(recent[drawn].sum())) == (200, 100)
    plain = finetune.finetune(tiny_encoder, folder, QUICK, tmp_path / "a")
    mixed = finetune.finetune(tiny_encoder, folder, dataclasses.replace(QUICK, replay_share=0.5), tmp_path / "b")
    assert plain.losses != mixed.losses


def test_the_result_counts_rows_steps_and_tokens(tiny_encoder: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    told: list[float] = []
    result = finetune.finetune(tiny_encoder, tiny_dataset, QUICK, tmp_path / "out", lambda share, _: told.append(share))
    assert (result.rows, result.steps, result.labels) == (128, 8, ["negative", "positive"])
    assert result.encoder == result.settings["encoder_name"] == "tiny"
    assert result.seconds > 0
    assert result.tokens_per_second > 0
    assert 0 <= result.padding < 0.05
    assert result.peak_memory_mb > 100
    assert (result.encoder_sha256, result.code) == ("0" * 64, finetune.code())
    assert told == [step / 8 for step in range(1, 9)]
    assert finetune.Result.from_json(result.to_json()) == result


def test_the_limit_of_minutes_ends_a_training_early_and_still_gives_a_model(
    tiny_encoder: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    result = train(tiny_encoder, tiny_dataset, tmp_path / "out", epochs=1000, minutes=1e-6)
    assert (result.steps, len(result.history)) == (1, 1)
    assert (tmp_path / "out" / "model.safetensors").is_file()


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
