"""How to train: one frozen dataclass, whose fields are the hyper-parameters that a job may be given.

Unlike its neighbours this module does not need torch: the workflow's steps read what may be searched from it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

from retrue import settings
from retrue.errors import WrongSetting

DEFAULT = "minilm-l6-distilbert"  # the encoder that needs no model hub
METRICS = ("accuracy", "f1_macro")
CUTS = ("head", "ends")


@dataclass(frozen=True)
class Settings:
    """How to train; each may come from outside as a variable of the same name.

    A step takes `batch_size` rows, in passes of at most `batch_tokens` tokens, padding included, whose gradients are
    added up; with 0 a pass is as large as suits the device. `warmup` is a share of all steps. `layer_decay` multiplies
    the learning rate once more for each layer further down (1 for none). `cut` says what is read of a text longer than
    `max_tokens` (retrue.classifier.cut). `frozen_layers` above 0 freezes the embeddings and that many of the lowest
    layers. `replay_share` is the share of base rows among those of an epoch where the dataset also holds labelled
    feedback (retrue.replay); below 0 rows are taken as they come. The `metric` is taken on the validation rows
    `evaluations` times an epoch; what gains less than `min_gain` is no gain, and `patience` epochs without one end the
    training. `max_rows` 0 takes every row, `minutes` 0 sets no limit. With `until` below 1 the training pauses after
    that share of its steps. `compile` pays where a long training runs on a GPU, and costs a minute at its start.
    """

    encoder_name: str = DEFAULT
    learning_rate: float = 1e-4
    epochs: int = 3
    batch_size: int = 32
    batch_tokens: int = 0
    max_tokens: int = 256
    cut: str = "ends"
    warmup: float = 0.1
    weight_decay: float = 0.01
    layer_decay: float = 1.0
    label_smoothing: float = 0.0
    seed: int = 0
    frozen_layers: int = 0
    replay_share: float = 0.75
    metric: str = "accuracy"
    evaluations: int = 1
    patience: int = 2
    min_gain: float = 0.0
    max_rows: int = 0
    minutes: float = 0.0
    until: float = 1.0
    checkpoint_minutes: float = 10.0
    compile: bool = False

    def __post_init__(self) -> None:
        least = {
            "learning_rate": 1e-12, "epochs": 1, "batch_size": 1, "batch_tokens": 0, "max_tokens": 8, "warmup": 0,
            "weight_decay": 0, "layer_decay": 0.01, "label_smoothing": 0, "frozen_layers": 0, "evaluations": 1,
            "patience": 1, "min_gain": 0, "max_rows": 0, "minutes": 0, "until": 1e-6, "checkpoint_minutes": 0,
            "seed": 0,
        }  # fmt: skip
        most = {"warmup": 1, "layer_decay": 1, "label_smoothing": 0.99, "replay_share": 1, "until": 1}
        # The negations refuse NaN, which is on neither side of any limit.
        wrong = [
            f"{name} must be at least {value}" for name, value in least.items() if not getattr(self, name) >= value
        ]
        wrong += [f"{name} must be at most {value}" for name, value in most.items() if not getattr(self, name) <= value]
        for name, known in {"metric": METRICS, "cut": CUTS}.items():
            if getattr(self, name) not in known:
                wrong.append(f"{name} must be one of {', '.join(known)}")
        if wrong:
            raise WrongSetting("; ".join(wrong))


def chosen(values: Mapping[str, str]) -> Settings:
    """Settings from texts by name, as a training job gets them; WrongSetting names each that is unknown or wrong."""
    own = {name: value for name, value in values.items() if not name.startswith("sagemaker_")}
    known = [field.name for field in fields(Settings)]
    unknown = sorted(set(own) - set(known))
    if unknown:
        raise WrongSetting(f"unknown training settings {', '.join(unknown)}: there are {', '.join(known)}")
    return settings.read(Settings, {name.upper(): value for name, value in own.items()})
