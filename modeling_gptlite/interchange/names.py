"""Convert a model between GPTLite and the classes of other projects: name tables and short loops.

    native = to_native(model)      # transformers' own Qwen3 or GPT-2 class
    model = from_native(native)
    model = from_nanogpt(torch.load("ckpt.pt", weights_only=True))

A conversion is exact, or it raises `ConversionError`. `modern-*` models have Qwen3's arithmetic and parameter names.
Models with learned positions have GPT-2's arithmetic; GPT-2 stores its linear weights transposed, and has every bias
except the head's. nanoGPT uses GPT-2's names with plain linear weights, and has either all biases or none.
"""

from typing import Any

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

from ..configuration_gptlite import GPTLiteConfig
from ..modeling_gptlite import GPTLiteForCausalLM
from .fields import BIASES, GPT2, NANOGPT, QWEN3, ConversionError, Target, require_understood


# The modules of GPT-2 and of one of its blocks: its name, our names. Where we have several, it concatenates them.
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
    """Convert to transformers' own class with the same logits: `Qwen3ForCausalLM` or `GPT2LMHeadModel`.

    Raises:
        ConversionError: Neither class computes this model.
    """
    return to_qwen3(model) if model.config.position_embedding_type == "rope" else to_gpt2(model)


def to_qwen3(model: GPTLiteForCausalLM) -> Qwen3ForCausalLM:
    """Convert to `Qwen3ForCausalLM`; the weights keep their names."""
    require_understood(model.config, QWEN3.name, QWEN3.understood)
    _require(model.config, QWEN3.name, QWEN3.fixed)
    config = Qwen3Config(**_their_fields(model.config, QWEN3))
    return _build(config, model.state_dict(), like=model)


def to_gpt2(model: GPTLiteForCausalLM) -> GPT2LMHeadModel:
    """Convert to `GPT2LMHeadModel`; missing biases become zeros, a head bias is folded into the final norm's bias."""
    _require_gpt2(model.config, GPT2)
    config = GPT2Config(**_their_fields(model.config, GPT2))
    return _build(config, _to_gpt2_names(model, bias=True, transposed=True), like=model)


def to_nanogpt(model: GPTLiteForCausalLM) -> dict:
    """Convert to a nanoGPT checkpoint: a dictionary with `model_args` and, under `model`, the weights."""
    config = model.config
    _require_gpt2(config, NANOGPT)
    _require(config, NANOGPT.name, {"intermediate_size": 4 * config.hidden_size})
    bias = config.lm_head_bias or any(getattr(config, name) for name in BIASES)
    return {
        "model_args": {**_their_fields(config, NANOGPT), "bias": bias, "dropout": float(config.hidden_dropout)},
        "model": _to_gpt2_names(model, bias=bias, transposed=False),
    }


def from_native(native: PreTrainedModel) -> GPTLiteForCausalLM:
    """Convert a `Qwen3ForCausalLM` or `GPT2LMHeadModel` to a GPTLite with the same logits.

    Raises:
        ConversionError: It is another class, or its configuration needs something that GPTLite does not compute.
    """
    if type(native) is Qwen3ForCausalLM:
        return _from_qwen3(native)
    if type(native) is GPT2LMHeadModel:
        return _from_gpt2(native)
    raise ConversionError(f"{type(native).__name__} is neither Qwen3ForCausalLM nor GPT2LMHeadModel")


def _from_qwen3(native: Qwen3ForCausalLM) -> GPTLiteForCausalLM:
    layer_types = ["full_attention"] * native.config.num_hidden_layers
    _require(native.config, "GPTLite", {**QWEN3.theirs, "layer_types": layer_types})
    config = GPTLiteConfig(**QWEN3.fixed, **_our_fields(native.config, QWEN3))
    return _build(config, native.state_dict(), like=native)


def _from_gpt2(native: GPT2LMHeadModel) -> GPTLiteForCausalLM:
    _require(native.config, "GPTLite", GPT2.theirs)
    fields: dict[str, Any] = {**GPT2.fixed, **dict.fromkeys(BIASES, True), **_our_fields(native.config, GPT2)}
    config = GPTLiteConfig(**fields)
    return _build(config, _from_gpt2_names(native.state_dict(), config, transposed=True), like=native)


def from_nanogpt(checkpoint: dict) -> GPTLiteForCausalLM:
    """Convert a nanoGPT checkpoint, as `torch.load` returns it, to a GPTLite with the same logits.

    Raises:
        ConversionError: It is not a nanoGPT checkpoint, or its weights do not match its `model_args`.
    """
    arguments, weights = checkpoint.get("model_args"), checkpoint.get("model")
    if not isinstance(arguments, dict) or not isinstance(weights, dict):
        raise ConversionError("not a nanoGPT checkpoint: it lacks model_args or model")
    arguments = {"bias": True, "dropout": 0.0, **arguments}  # early versions of nanoGPT wrote neither
    _require_names(arguments, [*NANOGPT.fields.values(), "bias", "dropout"], "model_args")
    for name, value in arguments.items():
        if type(value) is not int and name not in ("bias", "dropout"):
            raise ConversionError(f"model_args has {name}={value!r}, which must be an integer")
    fields: dict[str, Any] = {
        **NANOGPT.fixed,
        **{ours: arguments[theirs] for ours, theirs in NANOGPT.fields.items()},
        **dict.fromkeys(BIASES, bool(arguments["bias"])),
        **dict.fromkeys(("attention_dropout", "hidden_dropout", "embedding_dropout"), arguments["dropout"]),
    }
    config = GPTLiteConfig(**fields)
    # torch.compile adds the prefix.
    weights = {str(name).removeprefix("_orig_mod."): weight for name, weight in weights.items()}
    for name in [name for name in weights if name.endswith(".attn.bias")]:
        _require_causal_mask(name, weights.pop(name))  # a buffer of unfused attention
    with torch.device("meta"):
        expected = _to_gpt2_names(GPTLiteForCausalLM(config), bias=config.norm_bias, transposed=False)
    _require_tensors(weights, expected)
    if not torch.equal(weights["lm_head.weight"], weights["transformer.wte.weight"]):
        raise ConversionError("lm_head.weight and transformer.wte.weight differ; nanoGPT ties them")
    return _build(config, _from_gpt2_names(weights, config, transposed=False))


def _gpt2_modules(config: GPTLiteConfig) -> dict[str, list[str]]:
    """Every GPT-2 module that has parameters: its name, our names."""
    modules = dict(GPT2_ENDS)
    for layer in range(config.num_hidden_layers):
        for theirs, ours in GPT2_BLOCK.items():
            modules[f"transformer.h.{layer}.{theirs}"] = [f"model.layers.{layer}.{name}" for name in ours]
    return modules


def _to_gpt2_names(model: GPTLiteForCausalLM, bias: bool, transposed: bool) -> dict[str, torch.Tensor]:
    """Rename the weights to GPT-2's names; with `bias`, every norm and linear gets one, zeros where ours has none."""
    weights = {}
    for theirs, ours in _gpt2_modules(model.config).items():
        weight = torch.cat([model.get_parameter(f"{name}.weight").detach() for name in ours])
        weights[f"{theirs}.weight"] = weight.t().contiguous() if transposed and _is_linear(theirs) else weight
        if bias and (_is_linear(theirs) or ".ln_" in theirs):
            weights[f"{theirs}.bias"] = torch.cat([_bias(model.get_submodule(name)) for name in ours])
    if model.lm_head.bias is not None:
        weights["transformer.ln_f.bias"] = _final_norm_bias(model)
    return weights


def _from_gpt2_names(weights: dict[str, torch.Tensor], config: GPTLiteConfig, transposed: bool) -> dict:
    """Rename the weights from GPT-2's names to ours."""
    renamed: dict[str, torch.Tensor] = {}
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
    """Build the model of `config` with these weights, and the precision and generation settings of `like`."""
    # Built in that precision, because a later cast would also round the rotary frequencies.
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


def _their_fields(config: GPTLiteConfig, target: Target) -> dict[str, Any]:
    return {theirs: getattr(config, ours) for ours, theirs in target.fields.items()}


def _our_fields(config: PreTrainedConfig, target: Target) -> dict[str, Any]:
    return {ours: getattr(config, theirs) for ours, theirs in target.fields.items()}


def _require_gpt2(config: GPTLiteConfig, target: Target) -> None:
    require_understood(config, target.name, target.understood)
    _require(config, target.name, {**target.fixed, "num_key_value_heads": config.num_attention_heads})
    _require(config, target.name, {"head_dim": config.hidden_size // config.num_attention_heads})


def _require(config: PreTrainedConfig, target: str, needed: dict[str, Any]) -> None:
    for name, value in needed.items():
        if getattr(config, name) != value:
            raise ConversionError(f"{target} has {name}={value!r}, this model {name}={getattr(config, name)!r}")


def _require_causal_mask(name: str, mask: torch.Tensor) -> None:
    if not torch.equal(mask, torch.ones_like(mask).tril()):
        raise ConversionError(f"{name} is not nanoGPT's causal mask")


def _bias(module: torch.nn.Module) -> torch.Tensor:
    parameters = dict(module.named_parameters())
    weight = parameters["weight"]
    return parameters["bias"].detach() if "bias" in parameters else weight.new_zeros(weight.shape[0])


def _final_norm_bias(model: GPTLiteForCausalLM) -> torch.Tensor:
    """Fold the head's bias into the final norm's: the `b` with `head(b) = head(norm.bias) + head.bias`."""
    weight = model.lm_head.weight
    if weight.shape[0] > weight.shape[1]:
        raise ConversionError(
            "GPT-2's head has no bias; folding this model's into the final norm needs a vocabulary "
            f"({weight.shape[0]}) no larger than hidden_size ({weight.shape[1]})"
        )
    weight, target = weight.detach().double(), model.lm_head.bias.detach().double()
    solved = torch.linalg.lstsq(weight, target.unsqueeze(1), driver="gelsd").solution.squeeze(1)
    own = _bias(model.model.norm)
    bias = (own.double() + solved).to(own.dtype)
    if not torch.allclose(weight @ (bias.double() - own.double()), target, atol=1e-5):
        raise ConversionError(
            f"GPT-2's head has no bias, and folding this model's into the final norm is not exact in {own.dtype}"
        )
    return bias
