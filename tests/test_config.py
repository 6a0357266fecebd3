"""GPTLiteConfig: presets with exact sizes, and mistakes that name themselves."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from modeling_gptlite import GPTLiteConfig, GPTLiteForCausalLM


def parameters(config) -> int:
    with torch.device("meta"):
        return GPTLiteForCausalLM(config).num_parameters()


@pytest.mark.parametrize(
    ("preset", "vocab_size", "count"),
    [
        ("classic-10m", 65, 10_788_929),
        ("nanogpt-10m", 65, 10_745_088),
        ("gpt2-124m", 50257, 124_439_808),
        ("modern-1m", 68, 809_344),
        ("modern-10m", 68, 10_674_816),
        ("modern-124m", 50257, 123_552_768),
    ],
)
def test_presets_have_exactly_the_documented_parameters(preset, vocab_size, count):
    assert parameters(GPTLiteConfig.from_preset(preset, vocab_size=vocab_size)) == count


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"hiden_size": 64}, ["hiden_size", "hidden_size"]),
        ({"colour": "red"}, ["colour"]),
        ({"hidden_size": "64"}, ["hidden_size", "64", "int"]),
        ({"hidden_size": 100, "num_attention_heads": 7}, ["hidden_size", "100", "num_attention_heads", "7"]),
        (
            {"num_attention_heads": 6, "num_key_value_heads": 4},
            ["num_attention_heads", "6", "num_key_value_heads", "4"],
        ),
        ({"num_hidden_layers": 0}, ["num_hidden_layers", "0", "between 1 and"]),
        ({"vocab_size": -1}, ["vocab_size", "-1"]),
        ({"hidden_act": "rellu"}, ["hidden_act", "rellu", "relu"]),
        ({"norm_type": "batchnorm"}, ["norm_type", "batchnorm", "rmsnorm", "layernorm"]),
        ({"attention_dropout": 1.0}, ["attention_dropout", "1.0", "[0, 1)"]),
        ({"initializer_range": 0.0}, ["initializer_range", "0.0", "positive"]),
        ({"head_dim": 33}, ["head_dim", "33", "even"]),
        ({"norm_eps": float("nan")}, ["norm_eps", "nan", "positive"]),
        ({"rope_parameters": {"rope_type": "spiral"}}, ["rope_parameters", "spiral", "linear"]),
        ({"rope_parameters": {"rope_type": "linear"}}, ["rope_parameters", "linear", "factor"]),
    ],
)
def test_a_wrong_field_is_an_error_that_names_field_value_and_what_is_allowed(fields, told):
    with pytest.raises((ValueError, TypeError, StrictDataclassError)) as error:
        GPTLiteConfig(**fields)
    assert all(word in str(error.value) for word in told)


def test_an_unknown_preset_suggests_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'modern-10m'"):
        GPTLiteConfig.from_preset("modern-10")


def test_dropout_may_be_an_integer_zero():
    assert GPTLiteConfig(attention_dropout=0).attention_dropout == 0


def test_to_dict_and_back_is_the_identity():
    config = GPTLiteConfig.from_preset("classic-10m", vocab_size=99)
    assert GPTLiteConfig(**config.to_dict()).to_dict() == config.to_dict()
    assert GPTLiteConfig(**config.to_diff_dict()).to_dict() == config.to_dict()


def test_save_and_load_is_the_identity(tmp_path):
    config = GPTLiteConfig.from_preset("modern-1m", rope_parameters={"rope_type": "linear", "factor": 2.0})
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is GPTLiteConfig
    assert loaded.to_diff_dict() == config.to_diff_dict()


def test_a_saved_config_may_hold_what_another_tool_wrote_into_it(tmp_path):
    GPTLiteConfig().save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace("{", '{"written_by": "another tool",', 1))
    assert GPTLiteConfig.from_pretrained(tmp_path).written_by == "another tool"


def test_a_config_from_another_repository_is_saved_as_its_own():
    config = GPTLiteConfig(auto_map={"AutoConfig": "someone/else--configuration_gptlite.GPTLiteConfig"})
    assert config.auto_map["AutoConfig"] == "configuration_gptlite.GPTLiteConfig"
    assert {"AutoModel", "AutoModelForCausalLM", "AutoModelForSequenceClassification"} <= config.auto_map.keys()


def test_the_default_config_warns_of_nothing(caplog):
    from transformers.utils import logging

    logging.get_logger("transformers").addHandler(caplog.handler)
    GPTLiteConfig()
    assert not caplog.records
