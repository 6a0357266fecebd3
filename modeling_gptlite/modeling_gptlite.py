"""GPTLite: a decoder-only transformer in transformers' idiom, from the norm up to the language-model head.

    model = GPTLiteForCausalLM(GPTLiteConfig.from_preset("modern-10m"))

With the `modern-*` presets this is Qwen3's arithmetic and Qwen3's parameter names; with the others it is GPT-2's
arithmetic. This file travels to the Hub beside `configuration_gptlite.py`, so the two stand alone.

Shapes: B batch, T tokens, C hidden size, H heads, D head size, V vocabulary.
"""

import math
from collections.abc import Callable

import torch
from torch import nn
from transformers import AutoModel
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import (
    GenericForQuestionAnswering,
    GenericForSequenceClassification,
    GenericForTokenClassification,
    GradientCheckpointingLayer,
)
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, dynamic_rope_update
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_gptlite import GPTLiteConfig


def dtype_of_products(x: torch.Tensor) -> torch.dtype:
    """What the linear layers compute in: autocast's dtype where it is on, and to cast once is cheaper than in each."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


class GPTLiteRMSNorm(nn.Module):
    """Root-mean-square norm (Zhang and Sennrich, 2019); `Qwen3RMSNorm` in one fused call."""

    def __init__(self, hidden_size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.variance_epsilon = eps

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        # One dtype for both, also under autocast: the fused kernels take no other.
        weight = self.weight.to(hidden_states.dtype)
        normed = nn.functional.rms_norm(hidden_states, weight.shape, weight, self.variance_epsilon)
        return normed.to(dtype_of_products(hidden_states))

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, eps={self.variance_epsilon}"


class GPTLiteLayerNorm(nn.LayerNorm):
    """Layer norm with an optional bias, in the dtype that it is given."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden_states).to(dtype_of_products(hidden_states))


def build_norm(config: GPTLiteConfig) -> nn.Module:
    if config.norm_type == "rmsnorm":
        return GPTLiteRMSNorm(config.hidden_size, eps=config.norm_eps)
    return GPTLiteLayerNorm(config.hidden_size, eps=config.norm_eps, bias=config.norm_bias)


class GPTLiteRotaryEmbedding(nn.Module):
    """Cosines and sines of rotary positions (Su et al., 2021), with transformers' RoPE scalings."""

    def __init__(self, config: GPTLiteConfig):
        super().__init__()
        self.config = config
        self.max_seq_len_cached = config.max_position_embeddings
        self.original_max_seq_len = config.max_position_embeddings
        self.rope_type = config.rope_parameters["rope_type"]
        rope_init: Callable = self.compute_default_rope_parameters
        if self.rope_type != "default":
            rope_init = ROPE_INIT_FUNCTIONS[self.rope_type]
        inv_freq, self.attention_scaling = rope_init(config)
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.register_buffer("original_inv_freq", inv_freq.clone(), persistent=False)

    @staticmethod
    def compute_default_rope_parameters(config: GPTLiteConfig, device=None, **kwargs) -> tuple[torch.Tensor, float]:
        exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float, device=device) / config.head_dim
        return 1.0 / config.rope_parameters["rope_theta"] ** exponents, 1.0  # 1.0: no attention scaling

    @torch.no_grad()
    @dynamic_rope_update
    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        freqs = position_ids[..., None].float() * self.inv_freq.to(x.device, torch.float)  # B T D/2
        angles = torch.cat((freqs, freqs), dim=-1)  # B T D
        cos, sin = angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling
        dtype = dtype_of_products(x)
        return cos.to(dtype), sin.to(dtype)


def rotate_half(x: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def apply_rotary_pos_emb(query, key, cos, sin):
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)  # B 1 T D
    return query * cos + rotate_half(query) * sin, key * cos + rotate_half(key) * sin


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention spelt out; the only implementation that returns its weights."""
    key = key.repeat_interleave(module.num_key_value_groups, dim=1)
    value = value.repeat_interleave(module.num_key_value_groups, dim=1)
    weights = query @ key.transpose(2, 3) * scaling  # B H T T
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = nn.functional.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights  # B T H D


class GPTLiteAttention(nn.Module):
    """Causal multi-head attention (Vaswani et al., 2017) with optional q/k norm, RoPE and grouped queries."""

    def __init__(self, config: GPTLiteConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = True

        query_size = config.num_attention_heads * self.head_dim
        key_value_size = config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query_size, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, key_value_size, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, key_value_size, bias=config.attention_bias)
        self.o_proj = nn.Linear(query_size, config.hidden_size, bias=config.attention_out_bias)
        self.o_proj.writes_to_residual = True  # read by `_init_weights`
        if config.qk_norm:
            self.q_norm = GPTLiteRMSNorm(self.head_dim, eps=config.norm_eps)
            self.k_norm = GPTLiteRMSNorm(self.head_dim, eps=config.norm_eps)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None,
        attention_mask: torch.Tensor | None,
        past_key_values: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        batch_and_tokens = hidden_states.shape[:-1]
        heads = (*batch_and_tokens, -1, self.head_dim)
        query = self.q_proj(hidden_states).view(heads)  # B T H D
        key = self.k_proj(hidden_states).view(heads)
        value = self.v_proj(hidden_states).view(heads).transpose(1, 2)
        if self.config.qk_norm:
            query, key = self.q_norm(query), self.k_norm(key)
        query, key = query.transpose(1, 2), key.transpose(1, 2)  # B H T D
        if position_embeddings is not None:
            query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)

        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attention(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        output = output.reshape(*batch_and_tokens, -1).contiguous()  # B T HD
        return self.o_proj(output), weights


class GPTLiteMLP(nn.Module):
    """`down(act(gate(x)) * up(x))` (SwiGLU and its kin; Shazeer, 2020), or plain `down(act(up(x)))`."""

    def __init__(self, config: GPTLiteConfig):
        super().__init__()
        self.is_gated = config.mlp_type == "gated"
        if self.is_gated:
            self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.down_proj.writes_to_residual = True  # read by `_init_weights`
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.is_gated:
            return self.down_proj(self.act_fn(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))
        return self.down_proj(self.act_fn(self.up_proj(hidden_states)))


class GPTLiteDecoderLayer(GradientCheckpointingLayer):
    """Norm, attention, add; norm, MLP, add."""

    def __init__(self, config: GPTLiteConfig, layer_idx: int):
        super().__init__()
        self.self_attn = GPTLiteAttention(config, layer_idx)
        self.mlp = GPTLiteMLP(config)
        self.input_layernorm = build_norm(config)
        self.post_attention_layernorm = build_norm(config)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        attention_output, _ = self.self_attn(
            self.input_layernorm(hidden_states),
            attention_mask=attention_mask,
            position_embeddings=position_embeddings,
            past_key_values=past_key_values,
            **kwargs,
        )
        hidden_states = hidden_states + self.dropout(attention_output)
        return hidden_states + self.dropout(self.mlp(self.post_attention_layernorm(hidden_states)))


class GPTLitePreTrainedModel(PreTrainedModel):
    """What every GPTLite model shares: its abilities, and its initial weights."""

    config: GPTLiteConfig
    config_class = GPTLiteConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["GPTLiteDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": GPTLiteDecoderLayer, "attentions": GPTLiteAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Normal(0, `initializer_range`); what writes to the residual stream scaled by depth (GPT-2, section 2.3)."""
        super()._init_weights(module)
        # The flag sits on the nn.Linear itself: transformers never calls this for a module without own parameters.
        if getattr(module, "writes_to_residual", False):
            std = self.config.initializer_range / math.sqrt(2 * self.config.num_hidden_layers)
            nn.init.normal_(module.weight, mean=0.0, std=std)


class GPTLiteModel(GPTLitePreTrainedModel):
    """The decoder: token ids in, hidden states out."""

    def __init__(self, config: GPTLiteConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        if config.position_embedding_type == "learned":
            self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        else:
            self.rotary_emb = GPTLiteRotaryEmbedding(config=config)
        self.dropout = nn.Dropout(config.embedding_dropout)
        self.layers = nn.ModuleList([GPTLiteDecoderLayer(config, i) for i in range(config.num_hidden_layers)])
        self.norm = build_norm(config)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPast:
        """Hidden states `(batch, tokens, hidden_size)` of `input_ids` or `inputs_embeds` (exactly one of them).

        Raises:
            ValueError: both or neither input is given, or more tokens than learned positions.
        """
        if (input_ids is None) ^ (inputs_embeds is not None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)  # B T C
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            self._check_length(inputs_embeds.shape[1])
            past_tokens = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device) + past_tokens
            position_ids = position_ids.unsqueeze(0)  # 1 T

        hidden_states, position_embeddings = self._embed_positions(inputs_embeds, position_ids)
        causal_mask = create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        for layer in self.layers[: self.config.num_hidden_layers]:
            hidden_states = layer(
                hidden_states,
                attention_mask=causal_mask,
                position_embeddings=position_embeddings,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                **kwargs,
            )
        return BaseModelOutputWithPast(
            last_hidden_state=self.norm(hidden_states),
            past_key_values=past_key_values if use_cache else None,
        )

    def _check_length(self, tokens: int):
        context = self.config.max_position_embeddings
        if self.config.position_embedding_type == "learned" and tokens > context:
            raise ValueError(
                f"{tokens} tokens do not fit the context of {context}; cut the input, or use generate(), which slides"
            )

    def _embed_positions(self, inputs_embeds: torch.Tensor, position_ids: torch.Tensor):
        """The first hidden states, and the cosines and sines for every layer (None with learned positions)."""
        if self.config.position_embedding_type == "rope":
            return self.dropout(inputs_embeds), self.rotary_emb(inputs_embeds, position_ids)
        positions = self.embed_positions(position_ids).to(inputs_embeds.device)
        return self.dropout(inputs_embeds + positions), None


class GPTLiteForCausalLM(GPTLitePreTrainedModel, GenerationMixin):
    """The decoder with a language-model head: trains on next tokens, generates text of any length."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init__(self, config: GPTLiteConfig):
        super().__init__(config)
        self.model = GPTLiteModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=config.lm_head_bias)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CausalLMOutputWithPast:
        """Logits `(batch, tokens, vocab_size)`, and the mean cross-entropy in nats if targets are given.

        `labels` are shifted here (the target of token t is `labels[t + 1]`); `shift_labels` are taken as they are.
        -100 is no target. `logits_to_keep` limits the logits to the last so many tokens, or to an index.
        """
        outputs: BaseModelOutputWithPast = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept, :])

        loss = None
        if labels is not None or kwargs.get("shift_labels") is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.LongTensor,
        next_sequence_length: int | None = None,
        past_key_values: Cache | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        is_first_iteration: bool | None = False,
        **kwargs,
    ):
        """As in `GenerationMixin`; and where the text outgrows the context, the model reads a window of it.

        When the window is full, its newest half is kept and re-read from position 0. Where the window starts depends
        on the length of the text alone, so cached, uncached and batched generation see the same tokens.
        """
        unseen_from = past_key_values if next_sequence_length is None else None
        text_length = self._text_length(input_ids, attention_mask, kwargs.get("position_ids"), unseen_from)
        start = self._window_start(text_length)
        if start > 0:
            new_tokens = None if is_first_iteration else next_sequence_length
            if new_tokens is not None and new_tokens > 1:
                raise ValueError("assisted generation does not reach past the model's context")
            if text_length - input_ids.shape[1] > start:
                raise ValueError(
                    f"generation past the context of {self.config.max_position_embeddings} tokens reads old tokens "
                    "again: pass all of them as input_ids, without inputs_embeds and without prefill_chunk_size"
                )
            input_ids = input_ids[:, start - text_length :]
            attention_mask = attention_mask[:, start:] if attention_mask is not None else None
            kwargs["position_ids"] = self._window_positions(input_ids, attention_mask)
            if new_tokens is None or self._window_start(text_length - new_tokens) != start:
                next_sequence_length = None  # the whole window is new to the model
                if past_key_values is not None:
                    past_key_values.reset()
                    if length := int(past_key_values.get_seq_length()):  # before 5.18, `reset` keeps the length
                        past_key_values.crop(-length)

        return super().prepare_inputs_for_generation(
            input_ids,
            next_sequence_length=next_sequence_length,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )

    @staticmethod
    def _text_length(input_ids, attention_mask, position_ids, past_key_values) -> int:
        """How long the text is so far, of which `input_ids` may be the part that the cache has not seen."""
        known = [tensor.shape[-1] for tensor in (input_ids, attention_mask, position_ids) if tensor is not None]
        if max(known) > input_ids.shape[1] or past_key_values is None:
            return max(known)
        return input_ids.shape[1] + int(past_key_values.get_seq_length())

    def _get_stopping_criteria(self, *args, **kwargs):
        criteria = super()._get_stopping_criteria(*args, **kwargs)
        for criterion in criteria:
            if hasattr(criterion, "max_position_embeddings"):
                criterion.max_position_embeddings = None  # no warning past the context: the window slides
        return criteria

    def _window_start(self, text_length: int) -> int:
        """The first token that the model still reads when the text has `text_length` tokens."""
        context = self.config.max_position_embeddings
        stride = context + 1 - max(context // 2, 1)  # tokens that leave when the newest half stays
        return max(0, math.ceil((text_length - context) / stride)) * stride

    @staticmethod
    def _window_positions(input_ids: torch.LongTensor, attention_mask: torch.Tensor | None) -> torch.LongTensor:
        if attention_mask is None:
            return torch.arange(input_ids.shape[1], device=input_ids.device).unsqueeze(0)
        return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)  # padding is on the left


class GPTLiteTaskHead:
    """What the generic heads of transformers need to find the decoder under them."""

    def __init__(self, config: GPTLiteConfig):
        # They build it with `AutoModel.from_config`. From a saved folder, this file and the config come as two copies
        # of the configuration's module, so the class to register is the config's own.
        AutoModel.register(type(config), GPTLiteModel, exist_ok=True)
        super().__init__(config)


class GPTLiteForSequenceClassification(GPTLiteTaskHead, GenericForSequenceClassification, GPTLitePreTrainedModel):
    """The decoder with a classifier on the last token that is not padding."""


class GPTLiteForTokenClassification(GPTLiteTaskHead, GenericForTokenClassification, GPTLitePreTrainedModel):
    """The decoder with a classifier on every token."""


class GPTLiteForQuestionAnswering(GPTLiteTaskHead, GenericForQuestionAnswering, GPTLitePreTrainedModel):
    """The decoder with two scores per token: the answer's start and its end."""


__all__ = [
    "GPTLiteForCausalLM",
    "GPTLiteForQuestionAnswering",
    "GPTLiteForSequenceClassification",
    "GPTLiteForTokenClassification",
    "GPTLiteModel",
    "GPTLitePreTrainedModel",
]
