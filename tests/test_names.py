"""interchange/names.py: the same model as another class has equal logits, or is refused with the reason."""

import pytest
import torch
from helpers import ARCHITECTURES, nanogpt_checkpoint, nanogpt_logits, shake, shaken, tiny_model
from torch.testing import assert_close
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from modeling_gptlite import GPTLiteForCausalLM
from modeling_gptlite.interchange.names import (
    ConversionError,
    from_nanogpt,
    from_native,
    to_gpt2,
    to_nanogpt,
    to_native,
    to_qwen3,
)


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


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("preset", ARCHITECTURES)
def test_the_native_class_has_the_same_logits_and_converts_back(preset, tied, tmp_path):
    overrides = {"vocab_size": 24} if preset == "classic-10m" else {}
    model = shaken(preset, tie_word_embeddings=tied, **overrides)
    native = to_native(model)
    assert type(native) is (Qwen3ForCausalLM if preset.startswith("modern") else GPT2LMHeadModel)
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
    native = shake({"gpt2": GPT2LMHeadModel, "qwen3": Qwen3ForCausalLM}[config.model_type](config))
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


def test_rotary_frequencies_stay_in_full_precision():
    native = to_native(tiny_model("modern-1m").bfloat16())
    exact = tiny_model("modern-1m").model.rotary_emb.inv_freq
    assert torch.equal(native.model.rotary_emb.inv_freq, exact)


@pytest.mark.parametrize("vocab_size", [65, 128], ids=["as many rows as tokens", "padded"])
@pytest.mark.parametrize("prefix", ["", "_orig_mod."], ids=["plain", "compiled"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_nanogpt_checkpoint_has_the_same_logits_here_and_converts_back(bias, prefix, vocab_size):
    plain = nanogpt_checkpoint(bias, vocab_size)
    model = from_nanogpt(nanogpt_checkpoint(bias, vocab_size, prefix))
    assert_close(model(IDS).logits, nanogpt_logits(plain, IDS), atol=1e-5, rtol=1e-5)
    assert model.config.attention_dropout == model.config.hidden_dropout == model.config.embedding_dropout == 0.1
    back = to_nanogpt(model)
    assert back["model_args"] == plain["model_args"]
    assert back["model"].keys() == plain["model"].keys()
    assert all(torch.equal(back["model"][name], weight) for name, weight in plain["model"].items())


def test_a_checkpoint_of_the_first_nanogpt_has_no_bias_switch_and_may_hold_masks():
    checkpoint = nanogpt_checkpoint()
    expected = nanogpt_logits(checkpoint, IDS)
    del checkpoint["model_args"]["bias"], checkpoint["model_args"]["dropout"]
    for layer in range(2):
        checkpoint["model"][f"transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, 32, 32).tril()
    assert_close(from_nanogpt(checkpoint)(IDS).logits, expected, atol=1e-5, rtol=1e-5)


def test_a_partly_biased_model_becomes_a_nanogpt_with_zeros():
    model = shaken("nanogpt-10m", norm_bias=True)
    checkpoint = to_nanogpt(model)
    assert checkpoint["model_args"]["bias"]
    assert_close(nanogpt_logits(checkpoint, IDS), model(IDS).logits, atol=1e-5, rtol=1e-5)


def test_a_head_bias_is_folded_into_nanogpts_final_norm():
    model = shaken("nanogpt-10m", lm_head_bias=True, vocab_size=24)
    checkpoint = to_nanogpt(model)
    assert_close(nanogpt_logits(checkpoint, IDS), model(IDS).logits, atol=1e-4, rtol=1e-4)
    assert_close(from_nanogpt(checkpoint)(IDS).logits, model(IDS).logits, atol=1e-4, rtol=1e-4)


def without(checkpoint, part, name):
    del checkpoint[part][name]
    return checkpoint


def having(checkpoint, part, **values):
    checkpoint[part] |= values
    return checkpoint


WEIGHT = "transformer.h.1.mlp.c_fc.weight"
BAD_CHECKPOINTS = {
    "another program's": ({"state_dict": {}}, "lacks model_args or model"),
    "no weights": ({"model_args": {}}, "lacks model_args or model"),
    "missing weight": (without(nanogpt_checkpoint(), "model", WEIGHT), f"lacks {WEIGHT}"),
    "extra weight": (having(nanogpt_checkpoint(), "model", extra=torch.ones(1)), "has the unknown extra"),
    "wrong shape": (
        having(nanogpt_checkpoint(), "model", **{WEIGHT: torch.ones(32, 128)}),
        rf"{WEIGHT} has the shape \(32, 128\), the configuration asks for \(128, 32\)",
    ),
    "no tensor": (having(nanogpt_checkpoint(), "model", **{WEIGHT: 3}), rf"{WEIGHT} has the shape \(\)"),
    "fewer layers": (having(nanogpt_checkpoint(), "model_args", n_layer=1), "has the unknown transformer.h.1"),
    "more layers": (having(nanogpt_checkpoint(), "model_args", n_layer=3), "lacks transformer.h.2"),
    "biases without the switch": (having(nanogpt_checkpoint(), "model_args", bias=False), "has the unknown .*bias"),
    "another context": (having(nanogpt_checkpoint(), "model_args", block_size=64), "wpe.weight has the shape"),
    "missing argument": (without(nanogpt_checkpoint(), "model_args", "n_head"), "model_args lacks n_head"),
    "extra argument": (having(nanogpt_checkpoint(), "model_args", rotary=True), "model_args has the unknown rotary"),
    "no number": (having(nanogpt_checkpoint(), "model_args", n_head=None), "n_head=None"),
    "heads do not divide": (having(nanogpt_checkpoint(), "model_args", n_head=5), "multiple of num_attention_heads"),
    "untied": (
        having(nanogpt_checkpoint(), "model", **{"lm_head.weight": torch.ones(65, 32)}),
        "lm_head.weight and transformer.wte.weight differ",
    ),
    "not causal": (
        having(nanogpt_checkpoint(), "model", **{"transformer.h.0.attn.bias": torch.ones(1, 1, 32, 32)}),
        "not nanoGPT's causal mask",
    ),
}


@pytest.mark.parametrize(("checkpoint", "message"), BAD_CHECKPOINTS.values(), ids=BAD_CHECKPOINTS)
def test_a_checkpoint_that_is_not_nanogpts_is_refused(checkpoint, message):
    with pytest.raises(ValueError, match=message):
        from_nanogpt(checkpoint)


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
        (to_gpt2, "modern-1m", {}, "position_embedding_type='learned'"),
        (to_gpt2, "nanogpt-10m", {"num_key_value_heads": 2}, "num_key_value_heads=4"),
        (to_gpt2, "nanogpt-10m", {"head_dim": 16}, "head_dim=8"),
        (to_nanogpt, "modern-1m", {}, "position_embedding_type='learned'"),
        (to_nanogpt, "gpt2-124m", {}, "hidden_act='gelu'"),
        (to_nanogpt, "nanogpt-10m", {"norm_eps": 1e-6}, "norm_eps=1e-05"),
        (to_nanogpt, "nanogpt-10m", {"tie_word_embeddings": False}, "tie_word_embeddings=True"),
        (to_nanogpt, "nanogpt-10m", {"intermediate_size": 64}, "intermediate_size=128"),
        (to_nanogpt, "nanogpt-10m", {"num_key_value_heads": 2}, "num_key_value_heads=4"),
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
    "another class": (LlamaForCausalLM(LlamaConfig(**QWEN3_TINY)), "LlamaForCausalLM is neither"),
}


@pytest.mark.parametrize(("native", "message"), FOREIGN.values(), ids=FOREIGN)
def test_what_gptlite_does_not_compute_is_refused_by_name(native, message):
    with pytest.raises(ConversionError, match=message):
        from_native(native)
