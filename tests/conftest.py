"""What every test shares: a small real model, the real data where there is some, and no way to a real account."""

import json
import os
from pathlib import Path

import pytest

os.environ.update(
    AWS_ACCESS_KEY_ID="testing",
    AWS_SECRET_ACCESS_KEY="testing",
    AWS_SESSION_TOKEN="testing",
    AWS_DEFAULT_REGION="eu-central-1",
    AWS_EC2_METADATA_DISABLED="true",
    HF_HUB_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
)
os.environ.pop("AWS_PROFILE", None)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of labelled data that RETRUE_DATA names."""
    folder = os.environ.get("RETRUE_DATA")
    if not folder or not (Path(folder) / "imdb_train.parquet").is_file():
        pytest.skip(
            "RETRUE_DATA names no folder with imdb_train.parquet and imdb_test.parquet (columns text, label 0/1): "
            "get the IMDB reviews (https://ai.stanford.edu/~amaas/data/sentiment/ or the hub's stanfordnlp/imdb)"
        )
    return Path(folder)


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared dataset of 600 synthetic reviews, labels negative and positive."""
    from retrue import corpus, dataset

    root = tmp_path_factory.mktemp("datasets")
    examples = corpus.generate(seed=1, rows=600, domain="films")
    return dataset.write(root, {"train": examples}, name="tiny", source="synthetic", synthetic=True)


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DistilBERT of 2 layers, 32 wide, with random weights and a vocabulary learned from the synthetic reviews."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import DistilBertConfig, DistilBertModel

    from retrue import corpus

    folder = tmp_path_factory.mktemp("encoders") / "tiny"
    folder.mkdir()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    texts = [example.text for example in corpus.generate(seed=2, rows=300, domain="films")]
    tokenizer.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=600, special_tokens=special))
    ends = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(0)
    config = DistilBertConfig(
        vocab_size=tokenizer.get_vocab_size(), dim=32, n_layers=2, n_heads=2, hidden_dim=64, max_position_embeddings=512
    )
    DistilBertModel(config).save_pretrained(folder)
    notice = "Random weights, made for the tests."
    (folder / "NOTICE").write_text(notice)
    (folder / "encoder.json").write_text(json.dumps({"name": "tiny", "sha256": "0" * 64, "notice": notice}))
    return folder


@pytest.fixture(scope="session")
def tiny_model(tiny_encoder: Path, tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sealed model folder: the tiny encoder trained and exported by the real code."""
    from retrue.training import export, finetune

    root = tmp_path_factory.mktemp("models")
    settings = finetune.Settings(learning_rate=3e-3, epochs=3, batch_size=16, max_tokens=64)
    result = finetune.finetune(tiny_encoder, tiny_dataset, settings, root / "checkpoint")
    return export.export(root / "checkpoint", tiny_dataset, result, root / "model", created="2026-01-01T00:00:00.000Z")
