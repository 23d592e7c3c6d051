"""What a user of transformers would write: Trainer with its usual collator, on the same rows from the same encoder.

Usage: trainer.py ENCODER DATASET OUT SETTINGS, the last as JSON. Prints as JSON the seconds and CPU seconds that it
took from texts to a checkpoint.
"""

import json
import resource
import sys
import time
from pathlib import Path

import torch
import transformers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

from retrue import dataset


def main() -> None:
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF)
    encoder, folder, out, told = sys.argv[1:5]
    chosen = json.loads(told)
    labels = dataset.read_manifest(Path(folder)).labels
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    rows = dataset.read(Path(folder), "train")
    encoded = tokenizer([row.text for row in rows], truncation=True, max_length=chosen["max_tokens"])
    train = [
        {"input_ids": ids, "attention_mask": mask, "labels": labels.index(row.label)}
        for ids, mask, row in zip(encoded["input_ids"], encoded["attention_mask"], rows, strict=True)
    ]
    transformers.set_seed(chosen["seed"])
    model = AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=len(labels))
    arguments = TrainingArguments(
        output_dir=out,
        num_train_epochs=chosen["epochs"],
        per_device_train_batch_size=chosen["batch_size"],
        learning_rate=chosen["learning_rate"],
        weight_decay=chosen["weight_decay"],
        warmup_steps=chosen["warmup"],
        seed=chosen["seed"],
        bf16=torch.cuda.is_available(),
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
    )
    trainer = Trainer(model, arguments, train_dataset=train, data_collator=DataCollatorWithPadding(tokenizer))
    trainer.train()
    trainer.save_model(out)
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    sys.stdout.write(json.dumps({"seconds": time.monotonic() - began, "cpu": cpu}) + "\n")


if __name__ == "__main__":
    main()
