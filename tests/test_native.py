"""interchange/native.py: the same model as another class has equal logits, or is refused with the reason."""

import json

import pytest
import torch
from helpers import save_model, shake, shaken, tiny_config, tiny_model
from torch.testing import assert_close
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedConfig,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from modeling_gptlite import GPTLiteConfig, GPTLiteForCausalLM
from modeling_gptlite.interchange import FORMATS, Material, writable, write
from modeling_gptlite.interchange.native import (
    GPT2,
    LLAMA,
    QWEN3,
    WITHOUT_EFFECT,
    ConversionError,
    from_native,
    to_gpt2,
    to_llama,
    to_native,
    to_qwen3,
)
from modeling_gptlite.interchange.pretrained import read_pretrained, write_native


GPT2_TINY = {"vocab_size": 65, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32}
QWEN3_TINY = {
    "vocab_size": 65,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 32,
}
IDS = torch.randint(0, 24, (2, 20), generator=torch.Generator().manual_seed(1))


NATIVE = {
    "classic-10m": (GPT2LMHeadModel, {"vocab_size": 24}),
    "nanogpt-10m": (GPT2LMHeadModel, {}),
    "gpt2-124m": (GPT2LMHeadModel, {}),
    "modern-1m": (Qwen3ForCausalLM, {}),
    "modern-10m": (LlamaForCausalLM, {"qk_norm": False, "num_key_value_heads": 2}),
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("preset", NATIVE)
def test_the_native_class_has_the_same_logits_and_converts_back(preset, tied, tmp_path):
    native_class, overrides = NATIVE[preset]
    model = shaken(preset, tie_word_embeddings=tied, **overrides)
    native = to_native(model)
    assert type(native) is native_class
    native.save_pretrained(tmp_path)
    loaded, loading = type(native).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(loading.values())
    assert_close(loaded(IDS).logits, model(IDS).logits, atol=2e-5, rtol=1e-4)
    assert_close(from_native(loaded)(IDS).logits, loaded(IDS).logits, atol=1e-6, rtol=1e-5)


SOURCES = {
    "gpt2": GPT2Config(**GPT2_TINY),
    "gpt2 untied, narrow, other activation": GPT2Config(
        **GPT2_TINY, tie_word_embeddings=False, n_inner=40, activation_function="relu", layer_norm_epsilon=1e-3
    ),
    "gpt2 upcast attention": GPT2Config(**GPT2_TINY, reorder_and_upcast_attn=True),
    "qwen3": Qwen3Config(**QWEN3_TINY),
    "qwen3 tied, other base": Qwen3Config(
        **QWEN3_TINY, tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 500.0}
    ),
    "qwen3 linear": Qwen3Config(
        **QWEN3_TINY, rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
    ),
    "qwen3 dynamic": Qwen3Config(
        **{**QWEN3_TINY, "max_position_embeddings": 8},
        rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
    ),
    "llama": LlamaConfig(**QWEN3_TINY),
    "llama tied, other base": LlamaConfig(
        **QWEN3_TINY, tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 500.0}
    ),
    "qwen3 yarn": Qwen3Config(
        **QWEN3_TINY,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 1e4,
            "factor": 4.0,
            "original_max_position_embeddings": 8,
        },
    ),
}


@pytest.mark.parametrize("config", SOURCES.values(), ids=SOURCES)
def test_a_model_of_transformers_has_the_same_logits_here(config, tmp_path):
    torch.manual_seed(2)
    native = shake(AutoModelForCausalLM.from_config(config))
    model = from_native(native)
    assert_close(model(IDS).logits, native(IDS).logits, atol=1e-6, rtol=1e-5)
    model.save_pretrained(tmp_path)
    loaded = GPTLiteForCausalLM.from_pretrained(tmp_path)
    assert_close(loaded(IDS).logits, native(IDS).logits, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("preset", ["modern-1m", "nanogpt-10m"])
def test_generation_settings_and_precision_are_kept(preset):
    model = tiny_model(preset).bfloat16()
    model.generation_config.temperature = 0.7
    native = to_native(model)
    for converted in (native, from_native(native)):
        assert converted.generation_config.temperature == 0.7
        assert converted.dtype == torch.bfloat16
    assert from_native(native).generation_config == model.generation_config


def test_rotary_frequencies_stay_in_full_precision():
    native = to_native(tiny_model("modern-1m").bfloat16())
    exact = tiny_model("modern-1m").model.rotary_emb.inv_freq
    assert torch.equal(native.model.rotary_emb.inv_freq, exact)


def test_a_head_bias_that_does_not_fit_is_refused():
    with pytest.raises(ConversionError, match=r"vocabulary \(65\) no larger than hidden_size \(32\)"):
        to_gpt2(shaken("classic-10m"))
    with pytest.raises(ConversionError, match=r"not exact in torch.bfloat16"):
        to_gpt2(shaken("classic-10m", vocab_size=24).bfloat16())


@pytest.mark.parametrize(
    ("convert", "preset", "overrides", "message"),
    [
        (to_qwen3, "gpt2-124m", {}, "position_embedding_type='rope'"),
        (to_qwen3, "modern-1m", {"mlp_bias": True}, "mlp_bias=False"),
        (to_qwen3, "modern-1m", {"qk_norm": False}, "qk_norm=True"),
        (to_llama, "modern-1m", {}, "qk_norm=False"),
        (to_gpt2, "modern-1m", {}, "position_embedding_type='learned'"),
        (to_gpt2, "nanogpt-10m", {"num_key_value_heads": 2}, "num_key_value_heads=4"),
        (to_gpt2, "nanogpt-10m", {"head_dim": 16}, "head_dim=8"),
    ],
)
def test_what_a_class_does_not_compute_is_refused_by_name(convert, preset, overrides, message):
    with pytest.raises(ConversionError, match=message):
        convert(tiny_model(preset, **overrides))


SLIDING = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
FOREIGN = {
    "scale by layer": (
        GPT2LMHeadModel(GPT2Config(**GPT2_TINY, scale_attn_by_inverse_layer_idx=True)),
        "scale_attn_by_inverse_layer_idx=True",
    ),
    "unscaled": (GPT2LMHeadModel(GPT2Config(**GPT2_TINY, scale_attn_weights=False)), "scale_attn_weights=False"),
    "cross-attention": (GPT2LMHeadModel(GPT2Config(**GPT2_TINY, add_cross_attention=True)), "add_cross_attention=True"),
    "attention bias": (Qwen3ForCausalLM(Qwen3Config(**QWEN3_TINY, attention_bias=True)), "attention_bias=True"),
    "sliding window": (Qwen3ForCausalLM(Qwen3Config(**QWEN3_TINY, **SLIDING)), "use_sliding_window=True"),
    "sliding layers": (
        Qwen3ForCausalLM(Qwen3Config(**QWEN3_TINY, layer_types=["full_attention", "sliding_attention"])),
        "sliding_attention",
    ),
    "Llama's attention bias": (LlamaForCausalLM(LlamaConfig(**QWEN3_TINY, attention_bias=True)), "attention_bias=True"),
    "Llama's MLP bias": (LlamaForCausalLM(LlamaConfig(**QWEN3_TINY, mlp_bias=True)), "mlp_bias=True"),
    "another class": (MistralForCausalLM(MistralConfig(**QWEN3_TINY)), "MistralForCausalLM .* convert_hf_to_gguf.py"),
}


@pytest.mark.parametrize(("native", "message"), FOREIGN.values(), ids=FOREIGN)
def test_what_gptlite_does_not_compute_is_refused_by_name(native, message):
    with pytest.raises(ConversionError, match=message):
        from_native(native)


# ---- Configuration fields -------------------------------------------------------------------------------------------


EXPORTS = [name for name in writable() if FORMATS[name].supported_fields is not None]
MODEL_OF = {"gpt2": ("gpt2-124m", {}), "llama": ("modern-1m", {"qk_norm": False})}


class NewConfig(GPTLiteConfig):
    """A configuration that gained a field."""

    attention_temperature: float = 1.0


def with_a_new_field(folder, preset, **overrides) -> Material:
    material = read_pretrained(str(save_model(folder, preset, **overrides)))
    fields = {**material.model.config.to_dict(), "attention_temperature": 0.5}
    material.model.config = NewConfig(**{name: value for name, value in fields.items() if name != "model_type"})
    return material


@pytest.mark.parametrize("name", EXPORTS)
def test_every_export_refuses_a_field_that_it_does_not_know(name, tmp_path):
    preset, overrides = MODEL_OF.get(name, ("modern-1m", {}))
    material = with_a_new_field(tmp_path / "in", preset, **overrides)
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
    assert {field for field in FORMATS[name].supported_fields if not hasattr(config, field)} <= {"auto_map"}


@pytest.mark.parametrize(
    ("config", "target", "handled"),
    [
        (GPT2Config(), GPT2, {"reorder_and_upcast_attn"}),  # float32 attention, which GPTLite's is in any case
        (Qwen3Config(), QWEN3, {"layer_types", "max_window_layers", "sliding_window"}),  # checked by `from_native`
        (LlamaConfig(), LLAMA, {"pretraining_tp"}),  # how products were split; transformers 5 does not read it
    ],
    ids=["gpt2", "qwen3", "llama"],
)
def test_every_field_of_the_native_configurations_is_accounted_for(config, target, handled):
    """Fails if a later transformers adds a field: find out whether it changes the logits."""
    known = {
        *target.target_fields.values(),
        *target.required_of_target,
        *handled,
        *vars(PreTrainedConfig()),
        *WITHOUT_EFFECT,
    }
    assert {name for name in vars(config) if not name.startswith("summary_")} <= known
