"""The same model as another class: equal logits, or a refusal that says why."""

import pytest
import torch
from conftest import ARCHITECTURES, tiny_model
from torch.testing import assert_close
from transformers import GPT2LMHeadModel, Qwen3ForCausalLM

from modeling_gptlite.conversion import ConversionError, to_gpt2, to_native, to_qwen3


def shaken(preset, **overrides):
    """A tiny model whose biases and norms are not at their initial zeros and ones."""
    model = tiny_model(preset, **overrides)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("preset", ARCHITECTURES)
def test_the_native_class_gives_the_same_logits(preset, tied, tmp_path):
    overrides = {"vocab_size": 24} if preset == "classic-10m" else {}
    model = shaken(preset, tie_word_embeddings=tied, **overrides)
    native = to_native(model)
    assert type(native) is (Qwen3ForCausalLM if preset.startswith("modern") else GPT2LMHeadModel)
    native.save_pretrained(tmp_path)
    loaded = type(native).from_pretrained(tmp_path)
    ids = torch.randint(0, 24, (2, 20))
    assert_close(loaded(ids).logits, model(ids).logits, atol=2e-5, rtol=1e-4)


def test_generation_settings_and_precision_come_along():
    model = tiny_model("modern-1m").bfloat16()
    model.generation_config.temperature = 0.7
    assert to_native(model).generation_config.temperature == 0.7
    assert to_native(model).dtype == torch.bfloat16


def test_a_head_bias_that_does_not_fit_is_refused():
    with pytest.raises(ConversionError, match=r"vocabulary \(65\) is no larger than hidden_size \(32\)"):
        to_gpt2(shaken("classic-10m"))


@pytest.mark.parametrize(
    ("convert", "preset", "overrides", "told"),
    [
        (to_qwen3, "gpt2-124m", {}, "position_embedding_type='rope'"),
        (to_qwen3, "modern-1m", {"mlp_bias": True}, "mlp_bias=False"),
        (to_qwen3, "modern-1m", {"qk_norm": False}, "qk_norm=True"),
        (to_gpt2, "modern-1m", {}, "position_embedding_type='learned'"),
        (to_gpt2, "nanogpt-10m", {"num_key_value_heads": 2}, "num_key_value_heads=4"),
        (to_gpt2, "nanogpt-10m", {"head_dim": 16}, "head_dim=8"),
    ],
)
def test_what_the_class_cannot_be_is_refused_by_name(convert, preset, overrides, told):
    with pytest.raises(ConversionError, match=told):
        convert(tiny_model(preset, **overrides))
