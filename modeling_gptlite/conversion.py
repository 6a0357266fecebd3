"""The same model as another class: name tables and short loops, exact or refused.

    native = to_native(model)   # transformers' own Qwen3 or GPT-2 class

`modern-*` is Qwen3, name for name. The learned-position architectures are GPT-2, which stores its linears transposed,
has biases everywhere, and none on the head.
"""

import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from .configuration_gptlite import GPTLiteConfig
from .modeling_gptlite import GPTLiteForCausalLM


class ConversionError(ValueError):
    """The model cannot be the other class exactly; the message says why."""


# Fields of the two configurations: ours, theirs.
QWEN3_FIELDS = {
    **{
        name: name
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "max_position_embeddings",
            "hidden_act",
            "rope_parameters",
            "tie_word_embeddings",
            "attention_dropout",
            "initializer_range",
            "bos_token_id",
            "eos_token_id",
            "pad_token_id",
        )
    },
    "norm_eps": "rms_norm_eps",
}
GPT2_FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "n_embd",
    "intermediate_size": "n_inner",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
    "hidden_act": "activation_function",
    "tie_word_embeddings": "tie_word_embeddings",
    "norm_eps": "layer_norm_epsilon",
    "attention_dropout": "attn_pdrop",
    "hidden_dropout": "resid_pdrop",
    "embedding_dropout": "embd_pdrop",
    "initializer_range": "initializer_range",
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
    "pad_token_id": "pad_token_id",
}
# Modules of one GPT-2 block: theirs, ours; linears among them are transposed, and several of ours stand side by side.
GPT2_BLOCK = {
    "ln_1": ["input_layernorm"],
    "attn.c_attn": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    "attn.c_proj": ["self_attn.o_proj"],
    "ln_2": ["post_attention_layernorm"],
    "mlp.c_fc": ["mlp.up_proj"],
    "mlp.c_proj": ["mlp.down_proj"],
}


def to_native(model: GPTLiteForCausalLM) -> PreTrainedModel:
    """The model as the class of transformers that computes the same: Qwen3 or GPT-2.

    Raises:
        ConversionError: neither does.
    """
    is_qwen3 = model.config.position_embedding_type == "rope"
    native = to_qwen3(model) if is_qwen3 else to_gpt2(model)
    native.generation_config = model.generation_config
    return native.to(model.dtype).eval()


def to_qwen3(model: GPTLiteForCausalLM) -> Qwen3ForCausalLM:
    """The model as `Qwen3ForCausalLM`: the same weights under the same names."""
    config = model.config
    _require(config, "Qwen3", position_embedding_type="rope", norm_type="rmsnorm", qk_norm=True, mlp_type="gated")
    _require(config, "Qwen3", attention_bias=False, attention_out_bias=False, mlp_bias=False, lm_head_bias=False)
    qwen3 = Qwen3ForCausalLM(Qwen3Config(**{theirs: getattr(config, ours) for ours, theirs in QWEN3_FIELDS.items()}))
    qwen3.load_state_dict(model.state_dict())
    return qwen3


def to_gpt2(model: GPTLiteForCausalLM) -> GPT2LMHeadModel:
    """The model as `GPT2LMHeadModel`; biases that it lacks become zeros, a head bias goes into the final norm's."""
    config = model.config
    _require(config, "GPT-2", position_embedding_type="learned", norm_type="layernorm", qk_norm=False, mlp_type="plain")
    _require(config, "GPT-2", num_key_value_heads=config.num_attention_heads)
    _require(config, "GPT-2", head_dim=config.hidden_size // config.num_attention_heads)
    gpt2 = GPT2LMHeadModel(GPT2Config(**{theirs: getattr(config, ours) for ours, theirs in GPT2_FIELDS.items()}))
    state = model.state_dict()
    weights = {
        "transformer.wte.weight": state["model.embed_tokens.weight"],
        "transformer.wpe.weight": state["model.embed_positions.weight"],
        "transformer.ln_f.weight": state["model.norm.weight"],
        "transformer.ln_f.bias": _final_norm_bias(model),
        "lm_head.weight": state["lm_head.weight"],
    }
    for layer in range(config.num_hidden_layers):
        for theirs, ours in GPT2_BLOCK.items():
            modules = [model.get_submodule(f"model.layers.{layer}.{name}") for name in ours]
            weight = torch.cat([module.weight for module in modules]).t() if "ln" not in theirs else modules[0].weight
            weights[f"transformer.h.{layer}.{theirs}.weight"] = weight
            weights[f"transformer.h.{layer}.{theirs}.bias"] = torch.cat([_bias(module) for module in modules])
    gpt2.load_state_dict(weights)
    return gpt2


def _require(config: GPTLiteConfig, target: str, **fields) -> None:
    for name, needed in fields.items():
        if getattr(config, name) != needed:
            raise ConversionError(f"{target} has {name}={needed!r}, this model {name}={getattr(config, name)!r}")


def _bias(module: torch.nn.Module) -> torch.Tensor:
    return module.bias if module.bias is not None else module.weight.new_zeros(module.weight.shape[0])


def _final_norm_bias(model: GPTLiteForCausalLM) -> torch.Tensor:
    """The final norm's bias, with the head's bias in it: the `b` for which `head(b) = head(norm.bias) + head.bias`."""
    bias = _bias(model.model.norm)
    if model.lm_head.bias is None:
        return bias
    weight = model.lm_head.weight
    if weight.shape[0] > weight.shape[1]:
        raise ConversionError(
            f"GPT-2's head has no bias, and this one's goes into the final norm only where the vocabulary "
            f"({weight.shape[0]}) is no larger than hidden_size ({weight.shape[1]})"
        )
    solved = torch.linalg.lstsq(weight.double(), model.lm_head.bias.double().unsqueeze(1), driver="gelsd").solution
    if not torch.allclose(weight.double() @ solved, model.lm_head.bias.double().unsqueeze(1), atol=1e-6):
        raise ConversionError("GPT-2's head has no bias, and this one's does not fit into the final norm")
    return bias + solved.squeeze(1).to(bias.dtype)
