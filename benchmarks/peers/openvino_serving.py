"""OpenVINO on an int8 model of nncf: static, with its preset for transformers, after the ONNX file of optimum."""

import random
import shutil
from pathlib import Path

import engine
import numpy as np
import openvino
import serving

CALIBRATED = 64  # random texts; which ones decides nothing about speed


def make(checkpoint: Path, folder: Path) -> None:
    """FOLDER/model.xml, from CHECKPOINT/model.onnx."""
    import nncf

    draw = random.Random(0)
    rows = [
        [101, *(draw.randrange(1_000, 30_000) for _ in range(draw.randrange(14, 254))), 102] for _ in range(CALIBRATED)
    ]
    texts = [{"input_ids": np.array([row]), "attention_mask": np.ones((1, len(row)), np.int64)} for row in rows]
    model = openvino.convert_model(checkpoint / "model.onnx")
    small = nncf.quantize(model, nncf.Dataset(texts), model_type=nncf.ModelType.TRANSFORMER, subset_size=CALIBRATED)
    folder.mkdir(parents=True)
    openvino.save_model(small, folder / "model.xml")
    shutil.copyfile(checkpoint / "tokenizer.json", folder / "tokenizer.json")


def load(folder: Path, _: str, threads: int) -> serving.Served:
    settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
    request = openvino.Core().compile_model(folder / "model.xml", "CPU", settings).create_infer_request()
    return engine.served(
        folder, lambda ids, mask: request.infer({"input_ids": ids, "attention_mask": mask}, share_inputs=True)["logits"]
    )


if __name__ == "__main__":
    serving.answer(load, make)
