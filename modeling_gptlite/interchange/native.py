"""Convert a model between GPTLite and transformers' own classes: name tables and short loops.

    native = to_native(model)      # transformers' own Qwen3, Llama or GPT-2 class
    model = from_native(native)

A conversion is exact, or it raises `ConversionError`. `modern-*` models have Qwen3's arithmetic and parameter names;
without `qk_norm`, Llama's. Models with learned positions have GPT-2's arithmetic; GPT-2 stores its linear weights
transposed, and has every bias except the head's.

Exports are closed by default: a configuration field that is not listed here, because the configuration gained it later,
is an error.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from ..configuration_gptlite import GPTLiteConfig
from ..errors import UserError
from ..modeling_gptlite import GPTLiteForCausalLM


class ConversionError(UserError, ValueError):
    """The conversion is impossible; the message says why."""


# Configuration fields that do not change the logits: those of the base `PreTrainedConfig`, then ours.
WITHOUT_EFFECT = frozenset(
    {
        "architectures",
        "auto_map",
        "chunk_size_feed_forward",
        "dtype",
        "id2label",
        "is_encoder_decoder",
        "label2id",
        "model_type",
        "output_attentions",
        "output_hidden_states",
        "problem_type",
        "return_dict",
        "transformers_version",
    }
    | {
        "attention_dropout",
        "base_model_tp_plan",
        "bos_token_id",
        "embedding_dropout",
        "eos_token_id",
        "hidden_dropout",
        "initializer_range",
        "pad_token_id",
        "use_cache",
    }
)
BIASES = ("norm_bias", "attention_bias", "attention_out_bias", "mlp_bias")
SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
# Fields that GPTLite, Qwen3 and Llama call by the same name.
COMMON_WITH_LLAMA = (
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
    *SPECIAL_TOKENS,
)

# Every field that GPTLite computes with: what an export supports if it converts or traces the whole model.
WHOLE_MODEL = WITHOUT_EFFECT | {
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "max_position_embeddings"),
    *("num_attention_heads", "num_key_value_heads", "head_dim", "qk_norm"),
    *("position_embedding_type", "rope_parameters", "norm_type", "norm_eps", "mlp_type", "hidden_act"),
    *("tie_word_embeddings", "lm_head_bias", *BIASES),
}


@dataclass(frozen=True)
class Target:
    """A class that a GPTLite model can become.

    Args:
        name: Its name in messages.
        config_class: The class of its configuration.
        target_fields: The fields of GPTLite's configuration that are copied, with their names in the target's.
        required: Fields that must have one value, because the target computes nothing else.
        handled: Further fields that the conversion handles: as weights, or by a check in code.
        required_of_target: Fields of the target's configuration that must have one value, because GPTLite computes
            nothing else.
    """

    name: str
    config_class: type[PreTrainedConfig]
    target_fields: dict[str, str]
    required: dict[str, Any]
    handled: tuple[str, ...]
    required_of_target: dict[str, Any]

    @property
    def supported_fields(self) -> frozenset[str]:
        """The configuration fields that an export to this class may meet; any other field is refused."""
        return WITHOUT_EFFECT | {*self.target_fields, *self.required, *self.handled}


_LIKE_LLAMA = {
    "position_embedding_type": "rope",
    "norm_type": "rmsnorm",
    "mlp_type": "gated",
    "attention_bias": False,
    "attention_out_bias": False,
    "mlp_bias": False,
    "lm_head_bias": False,
}
_FIELDS_OF_LLAMA = {**{name: name for name in COMMON_WITH_LLAMA}, "norm_eps": "rms_norm_eps"}
QWEN3 = Target(
    "Qwen3",
    Qwen3Config,
    target_fields=_FIELDS_OF_LLAMA,
    required={**_LIKE_LLAMA, "qk_norm": True},
    handled=("norm_bias",),  # an RMS norm has none
    required_of_target={"attention_bias": False, "use_sliding_window": False},
)
LLAMA = Target(
    "Llama",
    LlamaConfig,
    target_fields=_FIELDS_OF_LLAMA,
    required={**_LIKE_LLAMA, "qk_norm": False},
    handled=("norm_bias",),
    required_of_target={"attention_bias": False, "mlp_bias": False},
)
GPT2 = Target(
    "GPT-2",
    GPT2Config,
    target_fields={
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
        **{name: name for name in SPECIAL_TOKENS},
    },
    required={
        "position_embedding_type": "learned",
        "norm_type": "layernorm",
        "qk_norm": False,
        "mlp_type": "plain",
    },
    # The biases are weights, the heads are checked in `to_gpt2`, and learned positions have no RoPE settings.
    handled=(*BIASES, "lm_head_bias", "num_key_value_heads", "head_dim", "rope_parameters"),
    required_of_target={
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    },
)


def require_supported(config: PreTrainedConfig, target: str, supported: frozenset[str]) -> None:
    """Raise `ConversionError` if the configuration has a public field that is not in `supported`."""
    if unknown := sorted(name for name in vars(config) if name[0] != "_" and name not in supported):
        fields = ", ".join(f"{name}={getattr(config, name)!r}" for name in unknown)
        raise ConversionError(
            f"the export to {target} does not support the configuration field {fields}; if it has no effect, delete it "
            "from config.json"
        )


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
    """Convert to transformers' own class with the same logits: Qwen3, Llama or GPT-2 for causal language modeling.

    Raises:
        ConversionError: None of them computes this model.
    """
    if model.config.position_embedding_type == "learned":
        return to_gpt2(model)
    return to_qwen3(model) if model.config.qk_norm else to_llama(model)


def to_qwen3(model: GPTLiteForCausalLM) -> Qwen3ForCausalLM:
    """Convert to `Qwen3ForCausalLM`; the weights keep their names."""
    return build(_config_of(QWEN3, model.config), model.state_dict(), like=model)


def to_llama(model: GPTLiteForCausalLM) -> LlamaForCausalLM:
    """Convert to `LlamaForCausalLM`; the weights keep their names."""
    return build(_config_of(LLAMA, model.config), model.state_dict(), like=model)


def to_gpt2(model: GPTLiteForCausalLM) -> GPT2LMHeadModel:
    """Convert to `GPT2LMHeadModel`; missing biases become zeros, a head bias is folded into the final norm's bias."""
    config = _config_of(GPT2, model.config)
    heads = model.config.num_attention_heads
    of_heads = {"num_key_value_heads": heads, "head_dim": model.config.hidden_size // heads}
    _require(model.config, GPT2.name, of_heads)
    return build(config, to_gpt2_names(model, bias=True, transposed=True), like=model)


def _config_of(target: Target, config: GPTLiteConfig) -> PreTrainedConfig:
    require_supported(config, target.name, target.supported_fields)
    _require(config, target.name, target.required)
    return target.config_class(**{theirs: getattr(config, ours) for ours, theirs in target.target_fields.items()})


def from_native(native: PreTrainedModel) -> GPTLiteForCausalLM:
    """Convert a Qwen3, Llama or GPT-2 for causal language modeling to a GPTLite with the same logits.

    Raises:
        ConversionError: It is another class, or its configuration needs something that GPTLite does not compute.
    """
    targets = {Qwen3ForCausalLM: QWEN3, LlamaForCausalLM: LLAMA, GPT2LMHeadModel: GPT2}
    target = targets.get(type(native))
    if target is None:
        raise ConversionError(
            f"{type(native).__name__} is none of {', '.join(known.__name__ for known in targets)}; llama.cpp's "
            "convert_hf_to_gguf.py writes GGUF files of other classes"
        )
    _require(native.config, "GPTLite", target.required_of_target)
    if hasattr(native.config, "layer_types"):
        _require(native.config, "GPTLite", {"layer_types": ["full_attention"] * native.config.num_hidden_layers})
    fields = {ours: getattr(native.config, theirs) for ours, theirs in target.target_fields.items()}
    if target is GPT2:
        fields |= dict.fromkeys(BIASES, True)
    config = GPTLiteConfig(**target.required, **fields)
    weights = native.state_dict()
    if target is GPT2:
        weights = from_gpt2_names(weights, config, transposed=True)
    return build(config, weights, like=native)


def _gpt2_modules(config: GPTLiteConfig) -> dict[str, list[str]]:
    """Every GPT-2 module that has parameters: its name, our names."""
    modules = dict(GPT2_ENDS)
    for layer in range(config.num_hidden_layers):
        for theirs, ours in GPT2_BLOCK.items():
            modules[f"transformer.h.{layer}.{theirs}"] = [f"model.layers.{layer}.{name}" for name in ours]
    return modules


def to_gpt2_names(model: GPTLiteForCausalLM, bias: bool, transposed: bool) -> dict[str, torch.Tensor]:
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


def from_gpt2_names(weights: dict[str, torch.Tensor], config: GPTLiteConfig, transposed: bool) -> dict:
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


def build(config: PreTrainedConfig, weights: dict[str, torch.Tensor], like: PreTrainedModel | None = None):
    """Build the model of `config` with these weights, and the precision and generation settings of `like`."""
    # Built in that precision, because a later cast would also round the rotary frequencies.
    model = AutoModelForCausalLM.from_config(config, dtype=like.dtype if like else torch.float32)
    require_tensors(weights, model.state_dict())
    model.load_state_dict(weights)
    if like is not None:
        model.generation_config = _generation_config(like.generation_config, config)
    return model.eval()


def _generation_config(source: GenerationConfig, config: PreTrainedConfig) -> GenerationConfig:
    """The same settings, ending at the context for a class that cannot go past it: pipelines ask for 256 new tokens."""
    generation_config, default = copy.deepcopy(source), GenerationConfig().max_length
    context = config.max_position_embeddings
    if isinstance(config, GPTLiteConfig):
        if generation_config.max_length == context:
            generation_config.max_length = default
    elif generation_config.max_length == default:
        generation_config.max_length = context
    return generation_config


def require_tensors(given: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    require_names(given, expected, "the checkpoint")
    for name, tensor in expected.items():
        shape = tuple(getattr(given[name], "shape", ()))
        if shape != tuple(tensor.shape):
            raise ConversionError(f"{name} has the shape {shape}, the configuration asks for {tuple(tensor.shape)}")


def require_names(given, expected, where: str) -> None:
    for names, problem in ((set(expected) - set(given), "lacks"), (set(given) - set(expected), "has the unknown")):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ConversionError(f"{where} {problem} {', '.join(sorted(map(str, names))[:3])}{more}")


def _require(config: PreTrainedConfig, target: str, needed: dict[str, Any]) -> None:
    for name, value in needed.items():
        if getattr(config, name) != value:
            raise ConversionError(f"{target} has {name}={value!r}, this model {name}={getattr(config, name)!r}")


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
