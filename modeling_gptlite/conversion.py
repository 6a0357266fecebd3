"""The same model as another class, both ways: name tables and short loops, exact or refused.

    native = to_native(model)      # transformers' own Qwen3 or GPT-2 class
    model = from_native(native)
    model = from_nanogpt(torch.load("ckpt.pt", weights_only=True))

`modern-*` is Qwen3, name for name. The learned-position architectures are GPT-2, which stores its linears transposed,
has biases everywhere, and none on the head. nanoGPT has GPT-2's names, plain linears, and all of its biases or none.
"""

import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from .configuration_gptlite import GPTLiteConfig
from .modeling_gptlite import GPTLiteForCausalLM


class ConversionError(ValueError):
    """The model cannot be the other class exactly; the message says why."""


# Fields of the configurations: ours, theirs.
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
NANOGPT_FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "block_size",
}
# What each class always is, in our words; and what of theirs must be so because GPTLite knows no other way.
QWEN3 = {
    "position_embedding_type": "rope",
    "norm_type": "rmsnorm",
    "qk_norm": True,
    "mlp_type": "gated",
    "attention_bias": False,
    "attention_out_bias": False,
    "mlp_bias": False,
    "lm_head_bias": False,
}
GPT2 = {"position_embedding_type": "learned", "norm_type": "layernorm", "qk_norm": False, "mlp_type": "plain"}
NANOGPT = {**GPT2, "hidden_act": "gelu", "norm_eps": 1e-5, "tie_word_embeddings": True}
QWEN3_FIXED = {"attention_bias": False, "use_sliding_window": False}
GPT2_FIXED = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False}
BIASES = ("norm_bias", "attention_bias", "attention_out_bias", "mlp_bias")
# The modules of GPT-2 and of one of its blocks: theirs, ours; several of ours stand side by side.
GPT2_ENDS = {
    "transformer.wte": ["model.embed_tokens"],
    "transformer.wpe": ["model.embed_positions"],
    "transformer.ln_f": ["model.norm"],
    "lm_head": ["lm_head"],
}
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
    return to_qwen3(model) if model.config.position_embedding_type == "rope" else to_gpt2(model)


def to_qwen3(model: GPTLiteForCausalLM) -> Qwen3ForCausalLM:
    """The model as `Qwen3ForCausalLM`: the same weights under the same names."""
    _require(model.config, "Qwen3", **QWEN3)
    config = Qwen3Config(**{theirs: getattr(model.config, ours) for ours, theirs in QWEN3_FIELDS.items()})
    return _build(config, model.state_dict(), like=model)


def to_gpt2(model: GPTLiteForCausalLM) -> GPT2LMHeadModel:
    """The model as `GPT2LMHeadModel`; biases that it lacks become zeros, a head bias goes into the final norm's."""
    _require_gpt2(model.config, "GPT-2", **GPT2)
    config = GPT2Config(**{theirs: getattr(model.config, ours) for ours, theirs in GPT2_FIELDS.items()})
    return _build(config, _to_gpt2_names(model, bias=True, transposed=True), like=model)


def to_nanogpt(model: GPTLiteForCausalLM) -> dict:
    """The model as a checkpoint of nanoGPT: `model_args`, and the weights under `model`."""
    config = model.config
    _require_gpt2(config, "nanoGPT", **NANOGPT, intermediate_size=4 * config.hidden_size)
    bias = config.lm_head_bias or any(getattr(config, name) for name in BIASES)
    arguments = {theirs: getattr(config, ours) for ours, theirs in NANOGPT_FIELDS.items()}
    return {
        "model_args": {**arguments, "bias": bias, "dropout": float(config.hidden_dropout)},
        "model": _to_gpt2_names(model, bias=bias, transposed=False),
    }


def from_native(native: PreTrainedModel) -> GPTLiteForCausalLM:
    """A `Qwen3ForCausalLM` or `GPT2LMHeadModel` as a GPTLite with the same logits.

    Raises:
        ConversionError: it is another class, or its configuration has what GPTLite lacks.
    """
    theirs = native.config
    if type(native) is Qwen3ForCausalLM:
        _require(theirs, "GPTLite", **QWEN3_FIXED, layer_types=["full_attention"] * theirs.num_hidden_layers)
        fields, fixed = QWEN3_FIELDS, QWEN3
    elif type(native) is GPT2LMHeadModel:
        _require(theirs, "GPTLite", **GPT2_FIXED)
        fields, fixed = GPT2_FIELDS, {**GPT2, **dict.fromkeys(BIASES, True)}
    else:
        raise ConversionError(f"a {type(native).__name__} is neither a Qwen3ForCausalLM nor a GPT2LMHeadModel")
    config = GPTLiteConfig(**fixed, **{ours: getattr(theirs, name) for ours, name in fields.items()})
    weights = native.state_dict()
    if fields is GPT2_FIELDS:
        weights = _from_gpt2_names(weights, config, transposed=True)
    return _build(config, weights, like=native)


def from_nanogpt(checkpoint: dict) -> GPTLiteForCausalLM:
    """A checkpoint of nanoGPT, as `torch.load` gives it, as a GPTLite with the same logits.

    Raises:
        ConversionError: it is no such checkpoint, or its weights are not those that its `model_args` tell of.
    """
    arguments, weights = checkpoint.get("model_args"), checkpoint.get("model")
    if not isinstance(arguments, dict) or not isinstance(weights, dict):
        raise ConversionError("it is not a checkpoint of nanoGPT: it lacks model_args or model")
    arguments = {"bias": True, "dropout": 0.0, **arguments}  # the first versions of nanoGPT wrote neither
    _require_names(arguments, [*NANOGPT_FIELDS.values(), "bias", "dropout"], "model_args")
    for name, value in arguments.items():
        if type(value) is not int and name not in ("bias", "dropout"):
            raise ConversionError(f"model_args has {name}={value!r}, which must be a whole number")
    config = GPTLiteConfig(
        **NANOGPT,
        **{ours: arguments[theirs] for ours, theirs in NANOGPT_FIELDS.items()},
        **dict.fromkeys(BIASES, bool(arguments["bias"])),
        **dict.fromkeys(("attention_dropout", "hidden_dropout", "embedding_dropout"), arguments["dropout"]),
    )
    weights = {str(name).removeprefix("_orig_mod."): weight for name, weight in weights.items()}  # of torch.compile
    for name in [name for name in weights if name.endswith(".attn.bias")]:
        _require_causal_mask(name, weights.pop(name))  # a buffer, where attention was not fused
    with torch.device("meta"):
        expected = _to_gpt2_names(GPTLiteForCausalLM(config), bias=config.norm_bias, transposed=False)
    _require_tensors(weights, expected)
    if not torch.equal(weights["lm_head.weight"], weights["transformer.wte.weight"]):
        raise ConversionError("lm_head.weight and transformer.wte.weight differ, which nanoGPT ties")
    return _build(config, _from_gpt2_names(weights, config, transposed=False))


def _gpt2_modules(config: GPTLiteConfig) -> dict[str, list[str]]:
    """Every module of GPT-2 that has parameters: theirs, ours."""
    modules = dict(GPT2_ENDS)
    for layer in range(config.num_hidden_layers):
        for theirs, ours in GPT2_BLOCK.items():
            modules[f"transformer.h.{layer}.{theirs}"] = [f"model.layers.{layer}.{name}" for name in ours]
    return modules


def _to_gpt2_names(model: GPTLiteForCausalLM, bias: bool, transposed: bool) -> dict[str, torch.Tensor]:
    """The weights under GPT-2's names; with `bias` for every norm and linear, zeros where the model has none."""
    weights = {}
    for theirs, ours in _gpt2_modules(model.config).items():
        modules = [model.get_submodule(name) for name in ours]
        weight = torch.cat([module.weight.detach() for module in modules])
        weights[f"{theirs}.weight"] = weight.t().contiguous() if transposed and _is_linear(theirs) else weight
        if bias and (_is_linear(theirs) or ".ln_" in theirs):
            weights[f"{theirs}.bias"] = torch.cat([_bias(module) for module in modules])
    if model.lm_head.bias is not None:
        weights["transformer.ln_f.bias"] = _final_norm_bias(model)
    return weights


def _from_gpt2_names(weights: dict[str, torch.Tensor], config: GPTLiteConfig, transposed: bool) -> dict:
    """The weights under our names."""
    renamed = {}
    for theirs, ours in _gpt2_modules(config).items():
        for kind in ("weight", "bias"):
            if f"{theirs}.{kind}" in weights:
                tensor = weights[f"{theirs}.{kind}"]
                tensor = tensor.t() if transposed and _is_linear(theirs) else tensor
                renamed |= {f"{name}.{kind}": part for name, part in zip(ours, tensor.chunk(len(ours)), strict=True)}
    return renamed


def _is_linear(theirs: str) -> bool:
    return ".c_" in theirs


def _build(config: PreTrainedConfig, weights: dict[str, torch.Tensor], like: PreTrainedModel | None = None):
    """The model of `config` with exactly these weights, in the precision and with the generation settings of `like`."""
    # Built in its precision: a cast would round the frequencies of rotary positions, too.
    model = AutoModelForCausalLM.from_config(config, dtype=like.dtype if like else torch.float32)
    _require_tensors(weights, model.state_dict())
    model.load_state_dict(weights)
    if like is not None:
        model.generation_config = like.generation_config
    return model.eval()


def _require_tensors(given: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    _require_names(given, expected, "the checkpoint")
    for name, tensor in expected.items():
        shape = tuple(getattr(given[name], "shape", ()))
        if shape != tuple(tensor.shape):
            raise ConversionError(f"{name} has the shape {shape}, the configuration asks for {tuple(tensor.shape)}")


def _require_names(given, expected, where: str) -> None:
    for names, problem in ((set(expected) - set(given), "lacks"), (set(given) - set(expected), "has the unknown")):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ConversionError(f"{where} {problem} {', '.join(sorted(map(str, names))[:3])}{more}")


def _require_gpt2(config: GPTLiteConfig, target: str, **fields) -> None:
    _require(config, target, **fields, num_key_value_heads=config.num_attention_heads)
    _require(config, target, head_dim=config.hidden_size // config.num_attention_heads)


def _require(config, target: str, **fields) -> None:
    for name, needed in fields.items():
        if getattr(config, name) != needed:
            raise ConversionError(f"{target} has {name}={needed!r}, this model {name}={getattr(config, name)!r}")


def _require_causal_mask(name: str, mask: torch.Tensor) -> None:
    if not torch.equal(mask, torch.ones_like(mask).tril()):
        raise ConversionError(f"{name} is not nanoGPT's causal mask")


def _bias(module: torch.nn.Module) -> torch.Tensor:
    return module.bias.detach() if module.bias is not None else module.weight.new_zeros(module.weight.shape[0])


def _final_norm_bias(model: GPTLiteForCausalLM) -> torch.Tensor:
    """The final norm's bias, with the head's bias in it: the `b` for which `head(b) = head(norm.bias) + head.bias`."""
    weight = model.lm_head.weight
    if weight.shape[0] > weight.shape[1]:
        raise ConversionError(
            f"GPT-2's head has no bias, and this one's goes into the final norm only where the vocabulary "
            f"({weight.shape[0]}) is no larger than hidden_size ({weight.shape[1]})"
        )
    weight, target = weight.detach().double(), model.lm_head.bias.detach().double()
    solved = torch.linalg.lstsq(weight, target.unsqueeze(1), driver="gelsd").solution.squeeze(1)
    own = _bias(model.model.norm)
    bias = (own.double() + solved).to(own.dtype)
    if not torch.allclose(weight @ (bias.double() - own.double()), target, atol=1e-5):
        raise ConversionError(
            f"GPT-2's head has no bias, and this one's does not fit into the final norm's in {own.dtype}"
        )
    return bias
