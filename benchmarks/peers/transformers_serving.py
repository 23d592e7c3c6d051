"""transformers' pipeline as its documentation has it; `how` is the precision."""

from pathlib import Path

import serving
import torch
from transformers import pipeline


def load(folder: Path, how: str, threads: int) -> serving.Served:
    torch.set_num_threads(threads)
    pipe = pipeline("text-classification", model=str(folder), dtype=getattr(torch, how), device="cpu")
    columns = pipe.model.config.label2id

    def many(texts: list[str], batch: int) -> list[int]:
        return [columns[said["label"]] for said in pipe(texts, batch_size=batch, truncation=True, max_length=512)]

    def bare(ids: list[int]) -> torch.Tensor:
        fed = torch.tensor([ids])
        with torch.inference_mode():
            return pipe.model(input_ids=fed, attention_mask=torch.ones_like(fed)).logits

    return serving.Served(lambda text: columns[pipe(text, truncation=True, max_length=512)[0]["label"]], bare, many)


if __name__ == "__main__":
    serving.answer(load)
