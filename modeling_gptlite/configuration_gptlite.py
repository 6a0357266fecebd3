"""GPTLite's configuration: one class, named switches, six presets.

    GPTLiteConfig.from_preset("modern-10m", vocab_size=68)

This file is uploaded to the Hub together with `modeling_gptlite.py`, so it imports nothing else of this package.
"""

import difflib
from dataclasses import fields
from typing import Any, Literal

import transformers


# Before the other imports: on another transformers they fail, or a model loads with a fresh head (5.3 and earlier).
if not (5, 4) <= tuple(map(int, transformers.__version__.split(".")[:2])) < (6, 0):
    raise ImportError(
        f"GPTLite needs transformers>=5.4,<6, and {transformers.__version__} is installed; "
        "pip install 'transformers>=5.4,<6', or export the model for transformers 4.51 and later: "
        "gptlite convert --to qwen3 (or gpt2) IN OUT"
    )

from huggingface_hub.dataclasses import strict
from transformers import GenerationConfig, PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS


# The start of the sha256 of modeling_gptlite.py. Two folders with one last name share the classes of the first if their
# copies of this file are equal (transformers#45632), so this file differs whenever the model's code does.
MODELING_SHA256 = "cb65911a2e6add14"

# Keywords that `PreTrainedConfig` understands in addition to our fields, from a caller or a `config.json`
_BASE_KEYWORDS = {
    "attn_implementation",
    "auto_map",
    "experts_implementation",
    "label2id",
    "model_type",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "per_layer_config",
    "quantization_config",
    "rope_scaling",
    "rope_theta",
    "tie_last_hidden_states",
    "torch_dtype",
    "use_bfloat16",
}

# A file with larger numbers is a mistake or an attack: it is refused before anything of that size is allocated
_LARGEST_SIZE, _MOST_LAYERS = 1 << 24, 1 << 12

_GPT2_FAMILY = {
    "position_embedding_type": "learned",
    "norm_type": "layernorm",
    "norm_eps": 1e-5,
    "qk_norm": False,
    "mlp_type": "plain",
}
_10M = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6, "max_position_embeddings": 256}
_124M = {
    "vocab_size": 50257,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 1024,
    "bos_token_id": 50256,
    "eos_token_id": 50256,
    "tie_word_embeddings": True,
}
_DROPOUT_02 = {"attention_dropout": 0.2, "hidden_dropout": 0.2}

PRESETS: dict[str, dict[str, Any]] = {
    "classic-10m": {
        **_GPT2_FAMILY,
        **_10M,
        **_DROPOUT_02,
        "vocab_size": 65,
        "hidden_act": "relu",
        "norm_bias": True,
        "attention_out_bias": True,
        "mlp_bias": True,
        "lm_head_bias": True,
        "tie_word_embeddings": False,
    },
    "nanogpt-10m": {
        **_GPT2_FAMILY,
        **_10M,
        **_DROPOUT_02,
        "embedding_dropout": 0.2,
        "vocab_size": 65,
        "hidden_act": "gelu",
        "tie_word_embeddings": True,
    },
    "gpt2-124m": {
        **_GPT2_FAMILY,
        **_124M,
        "hidden_act": "gelu_new",
        "norm_bias": True,
        "attention_bias": True,
        "attention_out_bias": True,
        "mlp_bias": True,
        "attention_dropout": 0.1,
        "hidden_dropout": 0.1,
        "embedding_dropout": 0.1,
    },
    "modern-1m": {
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
    },
    "modern-10m": _10M,
    "modern-124m": _124M,
}


@strict
class GPTLiteConfig(PreTrainedConfig):
    r"""Configuration of a GPTLite model. `GPTLiteConfig()` is the `modern-10m` preset.

    Args:
        vocab_size (`int`): Number of token ids.
        hidden_size (`int`): Width of the residual stream.
        intermediate_size (`int`, *optional*): Width inside the MLP. Default: 4 x `hidden_size` for a plain MLP,
            8/3 x `hidden_size` rounded up to a multiple of 8 for a gated one.
        num_hidden_layers (`int`): Number of decoder blocks.
        num_attention_heads (`int`): Number of query heads.
        num_key_value_heads (`int`, *optional*): Number of key and value heads (grouped-query attention).
            Default: `num_attention_heads`.
        head_dim (`int`, *optional*): Width of one head. Default: `hidden_size / num_attention_heads`.
        max_position_embeddings (`int`): Context length, in tokens.
        position_embedding_type (`"rope"` or `"learned"`): Rotary positions, or a learned table added to the input.
        rope_parameters (`dict`, *optional*): transformers' RoPE settings (`rope_theta`, `rope_type`, `factor`, ...).
        norm_type (`"rmsnorm"` or `"layernorm"`): The normalisation before each sub-layer and at the end.
        norm_eps (`float`): Added to the variance inside the norms.
        norm_bias (`bool`): Whether layer norms have a bias.
        qk_norm (`bool`): RMS-normalise each query and key head before RoPE, as Qwen3 does.
        mlp_type (`"gated"` or `"plain"`): `down(act(gate(x)) * up(x))`, or `down(act(up(x)))`.
        hidden_act (`str`): The MLP's activation, a name in `transformers.activations.ACT2FN`.
        attention_bias (`bool`): Whether the query, key and value projections have biases.
        attention_out_bias (`bool`): Whether the attention's output projection has a bias.
        mlp_bias (`bool`): Whether the MLP's projections have biases.
        lm_head_bias (`bool`): Whether the language-model head has a bias.
        tie_word_embeddings (`bool`): Whether head and input embedding share one matrix.
        attention_dropout (`float`): Dropout probability of the attention weights.
        hidden_dropout (`float`): Dropout probability of each sub-layer's output.
        embedding_dropout (`float`): Dropout probability of the input embeddings.
        initializer_range (`float`): Standard deviation of the initial weights; projections into the residual
            stream get it divided by sqrt(2 x `num_hidden_layers`), as in GPT-2.
        use_cache (`bool`): Whether the model returns its key/value cache.
        bos_token_id, eos_token_id, pad_token_id (`int`, *optional*): Special token ids.

    Raises:
        `ValueError`, `TypeError` or `huggingface_hub.errors.StrictDataclassError`, with a message that names the field,
        its value and what is allowed.
    """

    model_type = "gptlite"
    keys_to_ignore_at_inference = ["past_key_values", "cache"]

    base_model_tp_plan = {
        "layers.*.self_attn.q_proj": "colwise",
        "layers.*.self_attn.k_proj": "colwise",
        "layers.*.self_attn.v_proj": "colwise",
        "layers.*.self_attn.q_norm": "replicated_with_grad_allreduce",
        "layers.*.self_attn.k_norm": "replicated_with_grad_allreduce",
        "layers.*.self_attn.o_proj": "rowwise",
        "layers.*.mlp.gate_proj": "colwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    }
    base_model_pp_plan = {
        "embed_tokens": (["input_ids"], ["inputs_embeds"]),
        "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
        "norm": (["hidden_states"], ["hidden_states"]),
    }

    vocab_size: int = 68
    hidden_size: int = 384
    intermediate_size: int | None = None
    num_hidden_layers: int = 6
    num_attention_heads: int = 6
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    max_position_embeddings: int = 256
    position_embedding_type: Literal["rope", "learned"] = "rope"
    rope_parameters: dict | None = None
    norm_type: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    norm_eps: float = 1e-6
    norm_bias: bool = False
    qk_norm: bool = True
    mlp_type: Literal["gated", "plain"] = "gated"
    hidden_act: str = "silu"
    attention_bias: bool = False
    attention_out_bias: bool = False
    mlp_bias: bool = False
    lm_head_bias: bool = False
    tie_word_embeddings: bool = False
    attention_dropout: float | int = 0.0
    hidden_dropout: float | int = 0.0
    embedding_dropout: float | int = 0.0
    initializer_range: float = 0.02
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    @classmethod
    def from_preset(cls, name: str, **overrides) -> "GPTLiteConfig":
        """The preset `name` with some of its fields replaced.

        Raises:
            ValueError: the preset does not exist.
            TypeError: an override is not a field of the configuration.
        """
        if name not in PRESETS:
            raise ValueError(f"unknown preset {name!r}{_nearest(name, PRESETS)}; presets: {', '.join(PRESETS)}")
        return cls(**{**PRESETS[name], **overrides})

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        # A file may hold fields that a later version or another tool added; an unknown keyword of a caller is a typo.
        known = {key: value for key, value in config_dict.items() if cls._knows(key)}
        config = super().from_dict(known, **kwargs)
        for key in config_dict.keys() - known.keys():
            setattr(config[0] if isinstance(config, tuple) else config, key, config_dict[key])
        return config

    @classmethod
    def _knows(cls, keyword: str) -> bool:
        return (
            keyword.startswith("_")
            or keyword in _BASE_KEYWORDS
            or keyword in {field.name for field in fields(cls)}
            or keyword in GenerationConfig._get_default_generation_params()
        )

    def __post_init__(self, **kwargs):
        for keyword in kwargs:
            if not self._knows(keyword):
                names = [field.name for field in fields(self)]
                raise TypeError(f"GPTLiteConfig has no field {keyword!r}{_nearest(keyword, names)}")

        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None and self.num_attention_heads > 0:
            if self.hidden_size % self.num_attention_heads:
                raise ValueError(
                    f"hidden_size ({self.hidden_size}) must be a multiple of num_attention_heads "
                    f"({self.num_attention_heads}), or head_dim must be given"
                )
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.intermediate_size is None:
            plain, gated = 4 * self.hidden_size, -(-8 * self.hidden_size // 24) * 8
            self.intermediate_size = gated if self.mlp_type == "gated" else plain

        # Always the plain names, never "user/repo--file.Class": a saved model comes with its own code.
        kwargs["auto_map"] = dict(_AUTO_MAP)
        super().__post_init__(**kwargs)
        if self.position_embedding_type == "learned":
            self.rope_parameters = None
        absent = [] if self.qk_norm else ["q_norm", "k_norm"]
        absent += [] if self.mlp_type == "gated" else ["gate_proj"]
        self.base_model_tp_plan = {
            name: style for name, style in type(self).base_model_tp_plan.items() if name.split(".")[-1] not in absent
        }

    def validate_sizes(self):
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "max_position_embeddings",
        ):
            largest = _MOST_LAYERS if name == "num_hidden_layers" else _LARGEST_SIZE
            if not 1 <= getattr(self, name) <= largest:
                raise ValueError(f"{name} must lie between 1 and {largest:,}, got {getattr(self, name):,}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of num_key_value_heads "
                f"({self.num_key_value_heads})"
            )
        if self.position_embedding_type == "rope" and self.head_dim % 2:
            raise ValueError(f"head_dim must be even for rotary positions, got {self.head_dim}")

    def validate_activation(self):
        if self.hidden_act not in ACT2FN:
            raise ValueError(
                f"hidden_act {self.hidden_act!r} is not an activation{_nearest(self.hidden_act, ACT2FN)}; "
                f"allowed: {', '.join(sorted(ACT2FN))}"
            )

    def validate_ranges(self):
        for name in ("attention_dropout", "hidden_dropout", "embedding_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")
        for name in ("norm_eps", "initializer_range"):
            if not 0.0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")

    def validate_rope(self):
        """As in `PreTrainedConfig`, which only warns of an unknown type, and raises KeyError for a missing key."""
        rope_type, allowed = (self.rope_parameters or {}).get("rope_type", "default"), ["default", *ROPE_INIT_FUNCTIONS]
        if rope_type not in allowed:
            raise ValueError(f"rope_parameters: unknown rope_type {rope_type!r}; allowed: {', '.join(allowed)}")
        if rope_type == "dynamic" and self.head_dim < 4:
            raise ValueError(f"head_dim must be at least 4 for dynamic rope_parameters, got {self.head_dim}")
        try:
            super().validate_rope()
        except KeyError as error:
            raise ValueError(error.args[0]) from None


_AUTO_MAP = {
    "AutoConfig": "configuration_gptlite.GPTLiteConfig",
    "AutoModel": "modeling_gptlite.GPTLiteModel",
    "AutoModelForCausalLM": "modeling_gptlite.GPTLiteForCausalLM",
    "AutoModelForSequenceClassification": "modeling_gptlite.GPTLiteForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_gptlite.GPTLiteForTokenClassification",
    "AutoModelForQuestionAnswering": "modeling_gptlite.GPTLiteForQuestionAnswering",
}


def _nearest(name: str, names) -> str:
    match = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {match[0]!r}?" if match else ""


__all__ = ["PRESETS", "GPTLiteConfig"]
