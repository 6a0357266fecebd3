"""Configuration fields: how ours map to those of Qwen3, GPT-2 and nanoGPT, and which fields an export understands.

    require_understood(model.config, QWEN3.name, QWEN3.understood)

Exports are closed by default: a field that is not listed here, because the configuration gained it later, is an error.
"""

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig

from ..errors import UserError


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
# Fields that GPTLite and Qwen3 call by the same name.
COMMON_WITH_QWEN3 = (
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

# Every field that GPTLite computes with: what an export understands if it converts or traces the whole model.
WHOLE_MODEL = WITHOUT_EFFECT | {
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "max_position_embeddings"),
    *("num_attention_heads", "num_key_value_heads", "head_dim", "qk_norm"),
    *("position_embedding_type", "rope_parameters", "norm_type", "norm_eps", "mlp_type", "hidden_act"),
    *("tie_word_embeddings", "lm_head_bias", *BIASES),
}


@dataclass(frozen=True)
class Target:
    """A class that a GPTLite model can become, in terms of GPTLite's configuration fields.

    Args:
        name: Its name in messages.
        fields: Fields that are copied: our name, its name.
        fixed: Fields that must have one value, because the class computes nothing else.
        other: Further fields that the conversion handles: as weights, or by a check in code.
        theirs: Its own fields that must have one value, because GPTLite computes nothing else.
    """

    name: str
    fields: dict[str, str]
    fixed: dict[str, Any]
    other: tuple[str, ...]
    theirs: dict[str, Any]

    @property
    def understood(self) -> frozenset[str]:
        """The configuration fields that this export knows; any other field is refused."""
        return WITHOUT_EFFECT | {*self.fields, *self.fixed, *self.other}


QWEN3 = Target(
    "Qwen3",
    fields={**{name: name for name in COMMON_WITH_QWEN3}, "norm_eps": "rms_norm_eps"},
    fixed={
        "position_embedding_type": "rope",
        "norm_type": "rmsnorm",
        "qk_norm": True,
        "mlp_type": "gated",
        "attention_bias": False,
        "attention_out_bias": False,
        "mlp_bias": False,
        "lm_head_bias": False,
    },
    other=("norm_bias",),  # an RMS norm has none
    theirs={"attention_bias": False, "use_sliding_window": False},
)
_LIKE_GPT2 = {"position_embedding_type": "learned", "norm_type": "layernorm", "qk_norm": False, "mlp_type": "plain"}
# The biases are weights, the heads are checked in `_require_gpt2`, and learned positions have no RoPE settings.
_CHECKED = (*BIASES, "lm_head_bias", "num_key_value_heads", "head_dim", "rope_parameters")
GPT2 = Target(
    "GPT-2",
    fields={
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
    fixed=_LIKE_GPT2,
    other=_CHECKED,
    theirs={"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
)
NANOGPT = Target(
    "nanoGPT",
    fields={
        "vocab_size": "vocab_size",
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "block_size",
    },
    fixed={**_LIKE_GPT2, "hidden_act": "gelu", "norm_eps": 1e-5, "tie_word_embeddings": True},
    other=(*_CHECKED, "intermediate_size"),
    theirs={},
)


def require_understood(config: PreTrainedConfig, target: str, understood: frozenset[str]) -> None:
    """Raise `ConversionError` if the configuration has a public field that an export does not list as understood."""
    if unknown := sorted(name for name in vars(config) if name[0] != "_" and name not in understood):
        fields = ", ".join(f"{name}={getattr(config, name)!r}" for name in unknown)
        raise ConversionError(
            f"the export to {target} does not know the configuration field {fields}, which may change what the model "
            "computes; if it does not, delete it from config.json"
        )
