"""interchange/fields.py: every configuration field is carried, fixed or without effect; an unknown one is refused."""

import json

import pytest
from helpers import save_model, tiny_config
from transformers import GPT2Config, PreTrainedConfig, Qwen3Config

from modeling_gptlite import GPTLiteConfig
from modeling_gptlite.interchange import FORMATS, ConversionError, Material, writable, write
from modeling_gptlite.interchange.fields import GPT2, QWEN3, WITHOUT_EFFECT
from modeling_gptlite.interchange.pretrained import read_pretrained, write_native


EXPORTS = [name for name in writable() if FORMATS[name].understood is not None]
PRESET_OF = {"gpt2": "gpt2-124m", "nanogpt": "nanogpt-10m"}


class NewConfig(GPTLiteConfig):
    """A configuration that gained a field."""

    attention_temperature: float = 1.0


def with_a_new_field(folder, preset) -> Material:
    material = read_pretrained(str(save_model(folder, preset)))
    fields = {**material.model.config.to_dict(), "attention_temperature": 0.5}
    material.model.config = NewConfig(**{name: value for name, value in fields.items() if name != "model_type"})
    return material


@pytest.mark.parametrize("name", EXPORTS)
def test_every_export_refuses_a_field_that_it_does_not_know(name, tmp_path):
    material = with_a_new_field(tmp_path / "in", PRESET_OF.get(name, "modern-1m"))
    (tmp_path / "out").mkdir()
    with pytest.raises(ConversionError, match=rf"cannot convert to {name}: .* field attention_temperature=0\.5"):
        write(material, tmp_path / "out", name)
    assert not list((tmp_path / "out").iterdir())


def test_the_native_export_refuses_it_too(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(ConversionError, match="attention_temperature"):
        write_native(with_a_new_field(tmp_path / "in", "modern-1m"), tmp_path / "out")


@pytest.mark.parametrize("name", sorted(set(writable()) - set(EXPORTS)))
def test_a_format_without_a_list_saves_the_new_field(name, tmp_path):
    material = with_a_new_field(tmp_path / "in", "modern-1m")
    (tmp_path / "out").mkdir()
    write(material, tmp_path / "out", name)
    assert json.loads((tmp_path / "out/config.json").read_text())["attention_temperature"] == 0.5


@pytest.mark.parametrize("name", EXPORTS)
def test_an_export_lists_no_field_that_does_not_exist(name):
    config = tiny_config("modern-1m")
    assert {field for field in FORMATS[name].understood if not hasattr(config, field)} <= {"auto_map"}


@pytest.mark.parametrize(
    ("config", "target", "handled"),
    [
        (GPT2Config(), GPT2, {"reorder_and_upcast_attn"}),  # float32 attention, which GPTLite's is in any case
        (Qwen3Config(), QWEN3, {"layer_types", "max_window_layers", "sliding_window"}),  # checked by `from_native`
    ],
    ids=["gpt2", "qwen3"],
)
def test_every_field_of_the_native_configurations_is_accounted_for(config, target, handled):
    """Fails if a later transformers adds a field: find out whether it changes the logits."""
    known = {*target.fields.values(), *target.theirs, *handled, *vars(PreTrainedConfig()), *WITHOUT_EFFECT}
    assert {name for name in vars(config) if not name.startswith("summary_")} <= known
