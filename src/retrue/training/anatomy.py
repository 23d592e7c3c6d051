"""Where the parts of a DistilBERT or BERT classifier are, under names that both have in common."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from retrue.errors import BadEncoder

KINDS = ("distilbert", "bert")


@dataclass(frozen=True)
class Block:
    """One layer: attention with its projections, then the two products of the feed-forward net, each with its norm."""

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    merge: nn.Linear
    merged: nn.LayerNorm
    expand: nn.Linear
    contract: nn.Linear
    contracted: nn.LayerNorm


@dataclass(frozen=True)
class Anatomy:
    """A whole classifier; `positions` holds what BERT adds to a first segment too, `head` ends in the logits."""

    words: torch.Tensor  # (vocabulary, width)
    positions: torch.Tensor  # (positions, width)
    embedded: nn.LayerNorm
    blocks: list[Block]
    heads: int
    head: list[tuple[nn.Linear, str]]  # each with the ONNX operator that follows it, "" for none


def check(config: Mapping[str, Any]) -> None:
    """BadEncoder where a config.json is of no kind that can be served."""
    kind = config.get("model_type")
    if kind not in KINDS:
        raise BadEncoder(f"the encoder is of the type {kind}: name one of the types {' or '.join(KINDS)}")
    if (activation := config.get("activation", config.get("hidden_act"))) != "gelu":
        raise BadEncoder(f"the encoder's activation is {activation}: name one with gelu")
    if (embedding := config.get("position_embedding_type", "absolute")) != "absolute":
        raise BadEncoder(f"the encoder's positions are {embedding}: name one with absolute positions")


def of(model: Any) -> Anatomy:
    """The parts of a DistilBertForSequenceClassification or a BertForSequenceClassification."""
    heads = int(model.config.num_attention_heads)
    if model.config.model_type == "distilbert":
        embeddings, layers = model.distilbert.embeddings, model.distilbert.transformer.layer
        positions = embeddings.position_embeddings.weight
        head = [(model.pre_classifier, "Relu"), (model.classifier, "")]
    else:
        embeddings, layers = model.bert.embeddings, model.bert.encoder.layer
        positions = embeddings.position_embeddings.weight + embeddings.token_type_embeddings.weight[0]
        head = [(model.bert.pooler.dense, "Tanh"), (model.classifier, "")]
    blocks = [_distilbert(one) if hasattr(one, "ffn") else _bert(one) for one in layers]
    return Anatomy(embeddings.word_embeddings.weight, positions, embeddings.LayerNorm, blocks, heads, head)


def _distilbert(layer: Any) -> Block:
    attention, net = layer.attention, layer.ffn
    return Block(
        attention.q_lin, attention.k_lin, attention.v_lin, attention.out_lin, layer.sa_layer_norm,
        net.lin1, net.lin2, layer.output_layer_norm,
    )  # fmt: skip


def _bert(layer: Any) -> Block:
    attention = layer.attention
    return Block(
        attention.self.query, attention.self.key, attention.self.value, attention.output.dense,
        attention.output.LayerNorm, layer.intermediate.dense, layer.output.dense, layer.output.LayerNorm,
    )  # fmt: skip
