"""optimum's ONNX export in transformers' pipeline, as its documentation has it.

Made here too, from the same export: int8 by optimum's quantiser for onnxruntime, per channel. onnxruntime_serving.py
serves it.
"""

import shutil
from pathlib import Path

import onnxruntime
import serving
import torch
from optimum.onnxruntime import ORTModelForSequenceClassification, ORTQuantizer
from optimum.onnxruntime.configuration import AutoQuantizationConfig
from transformers import AutoTokenizer, pipeline


def make(checkpoint: Path, folder: Path) -> None:
    """FOLDER/fp32 and FOLDER/int8."""
    ORTModelForSequenceClassification.from_pretrained(checkpoint, export=True).save_pretrained(folder / "fp32")
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(folder / "fp32")
    settings = AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=True)
    quantizer = ORTQuantizer.from_pretrained(folder / "fp32")
    quantizer.quantize(save_dir=folder / "int8", quantization_config=settings)
    shutil.copyfile(checkpoint / "tokenizer.json", folder / "int8/tokenizer.json")


def load(folder: Path, _: str, threads: int) -> serving.Served:
    torch.set_num_threads(threads)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    model = ORTModelForSequenceClassification.from_pretrained(folder, session_options=options)
    pipe = pipeline("text-classification", model=model, tokenizer=AutoTokenizer.from_pretrained(folder), device="cpu")
    columns = model.config.label2id

    def many(texts: list[str], batch: int) -> list[int]:
        return [columns[said["label"]] for said in pipe(texts, batch_size=batch, truncation=True, max_length=512)]

    def bare(ids: list[int]) -> torch.Tensor:
        fed = torch.tensor([ids])
        return model(input_ids=fed, attention_mask=torch.ones_like(fed)).logits

    return serving.Served(lambda text: columns[pipe(text, truncation=True, max_length=512)[0]["label"]], bare, many)


if __name__ == "__main__":
    serving.answer(load, make)
