"""The training image with SageMaker's contract: folders in, a sealed model folder out, and no network."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from retrue.classifier import Classifier


def test_the_training_image_trains_a_model_without_a_network(
    image: Callable[[str], str], engine: Any, tiny_encoder: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    own = image("job")
    shutil.copytree(tiny_encoder, tmp_path / "input/data/encoder")
    shutil.copytree(tiny_dataset, tmp_path / "input/data/dataset")
    settings = {"epochs": "1", "max_tokens": "32", "max_rows": "64", "encoder_name": "tiny"}
    (tmp_path / "input/config").mkdir()
    (tmp_path / "input/config/hyperparameters.json").write_text(json.dumps(settings))
    words = ["run", "--rm", "--network", "none", "--pull", "never", "--memory", "4g", "--env", "OMP_NUM_THREADS=1"]
    words += ["--cap-drop", "all", "--security-opt", "no-new-privileges", "--volume", f"{tmp_path}:/opt/ml"]
    told = engine.ask(*words, own, "train")
    assert "progress 1.00" in told
    assert Classifier.open(tmp_path / "model").card.run["rows"] == 64
