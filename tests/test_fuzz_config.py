"""Every valid configuration trains, and is the same model after saving and loading; an invalid field is named."""

import pytest
import torch
from helpers import fuzzed
from huggingface_hub.errors import StrictDataclassError
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM
from transformers.activations import ACT2FN

from modeling_gptlite import GPTLiteConfig, GPTLiteForCausalLM


SWITCHES = (
    *("norm_bias", "qk_norm", "attention_bias", "attention_out_bias", "mlp_bias", "lm_head_bias"),
    *("tie_word_embeddings", "use_cache"),
)
DROPOUTS = ("attention_dropout", "hidden_dropout", "embedding_dropout")
SIZES = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings"),
    *("intermediate_size", "num_key_value_heads", "head_dim"),
)
ROPES = [
    None,
    {"rope_type": "default", "rope_theta": 500.0},
    {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0},
    {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0},
    {"rope_type": "yarn", "factor": 2.0, "rope_theta": 10000.0},
]


@st.composite
def valid(draw):
    key_value_heads, groups = draw(st.sampled_from([1, 2, 3])), draw(st.sampled_from([1, 2]))
    heads = key_value_heads * groups
    head_dim = draw(st.sampled_from([2, 4, 6]))
    token = st.none() | st.integers(0, 4)
    fields = {
        "vocab_size": draw(st.integers(5, 40)),
        "num_attention_heads": heads,
        "num_key_value_heads": draw(st.sampled_from([key_value_heads, None])),
        "hidden_size": heads * head_dim,
        "num_hidden_layers": draw(st.integers(1, 2)),
        "max_position_embeddings": draw(st.integers(1, 16)),
        "position_embedding_type": draw(st.sampled_from(["rope", "learned"])),
        "rope_parameters": draw(st.sampled_from(ROPES)),
        "norm_type": draw(st.sampled_from(["rmsnorm", "layernorm"])),
        "norm_eps": draw(st.floats(1e-8, 1e-2)),
        "mlp_type": draw(st.sampled_from(["gated", "plain"])),
        "hidden_act": draw(st.sampled_from(sorted(ACT2FN))),
        "initializer_range": draw(st.floats(1e-3, 0.5)),
        "bos_token_id": draw(token),
        "eos_token_id": draw(token | st.lists(st.integers(0, 4), min_size=1, max_size=2)),
        "pad_token_id": draw(token),
    }
    if head_dim == 2 and fields["rope_parameters"] is not None:
        fields["rope_parameters"] = ROPES[draw(st.sampled_from([1, 2, 4]))]  # dynamic needs 4
    if draw(st.booleans()):  # sizes that do not follow from each other
        fields |= {"head_dim": head_dim, "hidden_size": draw(st.integers(1, 24))}
        fields |= {"intermediate_size": draw(st.integers(1, 40))}
    fields |= {name: draw(st.booleans()) for name in SWITCHES}
    fields |= {name: draw(st.sampled_from([0, 0.0, 0.1, 0.9])) for name in DROPOUTS}
    return fields


@fuzzed(200)
@given(fields=valid())
def test_a_valid_configuration_trains_and_is_the_same_model_after_saving(fields, tmp_path):
    torch.manual_seed(0)
    model = GPTLiteForCausalLM(GPTLiteConfig(**fields)).train()
    ids = torch.randint(fields["vocab_size"], (2, min(8, fields["max_position_embeddings"])))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    loss = model(ids, shift_labels=ids.roll(-1, dims=1)).loss
    loss.backward()
    optimizer.step()
    assert loss.isfinite()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.eval().save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.to_diff_dict() == model.config.to_diff_dict()
    # With gradients: without them, few tokens are multiplied in an order that depends on the address of the weights.
    assert torch.equal(loaded(ids).logits, model(ids).logits)


nothing = st.sampled_from([None, "", "x", [], {}])
not_a_number = st.sampled_from([float("nan"), float("inf"), -float("inf")])
no_size = st.integers(max_value=0) | st.integers(1 << 25, 1 << 80) | st.floats() | st.text()
no_probability = nothing | not_a_number | st.floats(max_value=-1e-9) | st.floats(min_value=1) | st.integers(1)
INVALID = {
    **dict.fromkeys(SIZES, no_size),
    **dict.fromkeys(SWITCHES, st.sampled_from([None, 2, 0.5, "true", []])),
    **dict.fromkeys(DROPOUTS, no_probability),
    **dict.fromkeys(("norm_eps", "initializer_range"), nothing | not_a_number | st.floats(max_value=0)),
    **dict.fromkeys(("position_embedding_type", "norm_type", "mlp_type", "hidden_act"), nothing | st.text()),
    **dict.fromkeys(("bos_token_id", "pad_token_id"), st.text() | st.floats() | st.just([])),
    "eos_token_id": st.text() | st.floats() | st.lists(st.text(), min_size=1),
    "rope_parameters": st.text() | st.integers() | st.just({"rope_type": "spiral"}) | st.just({"rope_type": "linear"}),
}


@fuzzed(200)
@given(data=st.data(), name=st.sampled_from(sorted(INVALID)))
def test_an_invalid_value_is_an_error_that_names_the_field(data, name):
    value = data.draw(INVALID[name])
    with pytest.raises((ValueError, TypeError, StrictDataclassError)) as error:
        GPTLiteConfig(**{name: value})
    assert name in str(error.value)


@fuzzed(50)
@given(name=st.from_regex(r"[a-z][a-z_]{3,20}", fullmatch=True))
def test_an_unknown_field_is_an_error_that_names_it(name):
    if GPTLiteConfig._knows(name):
        return
    with pytest.raises(TypeError, match=f"no field '{name}'"):
        GPTLiteConfig(**{name: 1})
