import pytest

from retrue.errors import WrongSetting
from retrue.training.settings import Settings, chosen


def test_settings_come_from_texts_and_a_misspelt_name_is_an_error() -> None:
    given = {
        "learning_rate": "0.0003",
        "epochs": "2",
        "cut": "ends",
        "encoder_name": "somebody/one",
        "sagemaker_x": "y",
    }
    assert chosen(given) == Settings(learning_rate=0.0003, epochs=2, cut="ends", encoder_name="somebody/one")
    with pytest.raises(WrongSetting, match="unknown training settings learning_rat: there are encoder_name"):
        chosen({"learning_rat": "1"})
    with pytest.raises(WrongSetting, match="EPOCHS is not a whole number"):
        chosen({"epochs": "two"})


def test_every_setting_out_of_its_range_is_named_in_one_error() -> None:
    with pytest.raises(WrongSetting) as raised:
        chosen({"epochs": "0", "warmup": "1.5", "learning_rate": "nan", "cut": "tail", "metric": "auc", "seed": "-1"})
    assert str(raised.value) == (
        "learning_rate must be at least 1e-12; epochs must be at least 1; seed must be at least 0; "
        "warmup must be at most 1; metric must be one of accuracy, f1_macro; cut must be one of head, ends"
    )
