"""GPTLite: a decoder-only transformer in transformers' idiom, from the norm up to the language-model head.

    model = GPTLiteForCausalLM(GPTLiteConfig.from_preset("modern-10m"))

With the `modern-*` presets it computes what Qwen3 computes and uses Qwen3's parameter names; with the others it
computes what GPT-2 computes. This file is uploaded to the Hub together with `configuration_gptlite.py`, so the two
import nothing else of this package.

Shapes: B batch, T tokens, C hidden size, H heads, D head size, V vocabulary.
"""

import functools
import inspect
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


# transformers 5.24 renamed `past_key_values` to `cache`; what this file passes on has the installed release's name.
_CACHE = next(
    name
    for name in ("cache", "past_key_values")
    if name in inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
)


_FEW_TOKENS = 16  # at most this many in a step of generation; for more, the halves gain little


def takes_both_cache_names(function: Callable) -> Callable:
    """Lets `function`, which has an argument `past_key_values`, also be called with `cache`."""

    @functools.wraps(function)
    def renamed(*args, **kwargs):
        if "cache" in kwargs:
            kwargs["past_key_values"] = kwargs.pop("cache")
        return function(*args, **kwargs)

    signature = inspect.signature(function)
    names = {"past_key_values": _CACHE}
    parameters = [parameter.replace(name=names.get(name, name)) for name, parameter in signature.parameters.items()]
    renamed.__signature__ = signature.replace(parameters=parameters)  # `generate` checks its arguments against it
    return renamed


def dtype_of_products(x: torch.Tensor) -> torch.dtype:
    """The dtype that the linear layers compute in; under autocast, casting once is cheaper than in every layer."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def is_generating_on_cpu(x: torch.Tensor) -> bool:
    """Whether `x` holds the few tokens of a step of generation, for which PyTorch's CPU kernels are not tuned."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False
    return x.is_cpu and x.dtype == torch.float32 and x.shape[:-1].numel() <= _FEW_TOKENS


class GPTLiteLinear(nn.Linear):
    """A linear layer that multiplies few tokens by the two halves of its matrix, as a batch of two products.

    A single product with few columns may run in a slow kernel on one core (`benchmarks/tuning.md`).
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        is_plain = type(self.weight) is nn.Parameter and self.weight.is_contiguous()  # neither sharded nor quantized
        if not (is_plain and self.out_features % 2 == 0 and is_generating_on_cpu(x)):
            return super().forward(x)
        columns = x.reshape(-1, self.in_features).t()
        halves = torch.bmm(self.weight.view(2, -1, self.in_features), columns.expand(2, -1, -1))
        product = halves.view(self.out_features, -1).t().reshape(*x.shape[:-1], self.out_features)
        return product if self.bias is None else product + self.bias


class GPTLiteRMSNorm(nn.Module):
    """Root-mean-square norm (Zhang and Sennrich, 2019); `Qwen3RMSNorm` in one fused call."""

    def __init__(self, hidden_size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.variance_epsilon = eps

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if is_generating_on_cpu(hidden_states):  # the fused call also prepares a backward pass
            mean = (hidden_states * hidden_states).mean(-1, keepdim=True)
            return hidden_states * torch.rsqrt(mean + self.variance_epsilon) * self.weight
        # One dtype for both, also under autocast: the fused kernels take no other.
        weight = self.weight.to(hidden_states.dtype)
        normed = nn.functional.rms_norm(hidden_states, weight.shape, weight, self.variance_epsilon)
        return normed.to(dtype_of_products(hidden_states))

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, eps={self.variance_epsilon}"


class GPTLiteLayerNorm(nn.LayerNorm):
    """Layer norm with an optional bias, computed in the dtype of its input."""

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
        cos, sin = freqs.cos() * self.attention_scaling, freqs.sin() * self.attention_scaling
        dtype = dtype_of_products(x)
        # The signs that rotate a pair (first half, second half) are in the sines, once for all layers.
        cos, sin = torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)
        return cos.to(dtype), sin.to(dtype)  # B T D


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Queries or keys `(B, H, T, D)` at their positions."""
    return x * cos + x.roll(x.shape[-1] // 2, dims=-1) * sin


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
    """Attention as matrix products; the only implementation that returns the attention weights."""
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
        self.q_proj = GPTLiteLinear(config.hidden_size, query_size, bias=config.attention_bias)
        self.k_proj = GPTLiteLinear(config.hidden_size, key_value_size, bias=config.attention_bias)
        self.v_proj = GPTLiteLinear(config.hidden_size, key_value_size, bias=config.attention_bias)
        self.o_proj = GPTLiteLinear(query_size, config.hidden_size, bias=config.attention_out_bias)
        self.o_proj.writes_to_residual = True  # read by `_init_weights`
        self.qk_norm = config.qk_norm
        if self.qk_norm:
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
        if self.qk_norm:
            query, key = self.q_norm(query), self.k_norm(key)
        query, key = query.transpose(1, 2), key.transpose(1, 2)  # B H T D
        if position_embeddings is not None:
            query, key = rotate(query, *position_embeddings), rotate(key, *position_embeddings)
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
    """`down(act(gate(x)) * up(x))` (SwiGLU and other gated units; Shazeer, 2020), or `down(act(up(x)))`."""

    def __init__(self, config: GPTLiteConfig):
        super().__init__()
        self.is_gated = config.mlp_type == "gated"
        if self.is_gated:
            self.gate_proj = GPTLiteLinear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = GPTLiteLinear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = GPTLiteLinear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
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
        hidden_states = self._add(hidden_states, attention_output)
        return self._add(hidden_states, self.mlp(self.post_attention_layernorm(hidden_states)))

    def _add(self, hidden_states: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        return hidden_states + (self.dropout(output) if self.training else output)


class GPTLitePreTrainedModel(PreTrainedModel):
    """Base class of the GPTLite models: what transformers may do with them, and the initial weights."""

    config: GPTLiteConfig
    config_class = GPTLiteConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["GPTLiteDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values", "cache"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": GPTLiteDecoderLayer, "attentions": GPTLiteAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Normal(0, `initializer_range`); layers that write to the residual stream are scaled by depth (GPT-2, 2.3)."""
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

    @takes_both_cache_names
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
        causal_mask = self._causal_mask(inputs_embeds, attention_mask, past_key_values, position_ids)
        if position_ids is None:
            self._check_length(inputs_embeds.shape[1])
            past_tokens = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device) + past_tokens
            position_ids = position_ids.unsqueeze(0)  # 1 T

        hidden_states, position_embeddings = self._embed_positions(inputs_embeds, position_ids)
        for layer in self.layers:
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
            **{_CACHE: past_key_values if use_cache else None},
        )

    def _causal_mask(self, inputs_embeds, attention_mask, past_key_values, position_ids):
        """The mask for the attention implementation; `position_ids` only if the caller gave them (packed sequences)."""
        is_plain = attention_mask is None and past_key_values is None and position_ids is None
        if is_plain and self.config._attn_implementation == "sdpa":
            return None  # SDPA's own causal mask; compiled, transformers builds one, which rules out the flash kernel
        return create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            **{_CACHE: past_key_values},
            position_ids=position_ids,
        )

    def _check_length(self, tokens: int):
        context = self.config.max_position_embeddings
        if self.config.position_embedding_type == "learned" and tokens > context:
            raise ValueError(
                f"{tokens} tokens do not fit the context of {context}: shorten the input, or call generate(), which "
                "reads a sliding window"
            )

    def _embed_positions(self, inputs_embeds: torch.Tensor, position_ids: torch.Tensor):
        """The first hidden states, and the cosines and sines for every layer (None with learned positions)."""
        if self.config.position_embedding_type == "rope":
            cos, sin = self.rotary_emb(inputs_embeds, position_ids)
            return self.dropout(inputs_embeds), (cos.unsqueeze(1), sin.unsqueeze(1))  # B 1 T D: one for all heads
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
        self.lm_head = GPTLiteLinear(config.hidden_size, config.vocab_size, bias=config.lm_head_bias)
        self.post_init()

    @takes_both_cache_names
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
        -100 is no target. `logits_to_keep` limits the logits to this many last tokens, or to an index.
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
            **{_CACHE: outputs.get(_CACHE)},
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    @takes_both_cache_names
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
        """As in `GenerationMixin`; if a text is longer than the context, the model reads a window of it.

        When the window is full, its newest half is kept and read again from position 0. Each row of a batch has its
        own window, whose start depends only on the length of that row's text without padding. Therefore cached,
        uncached and batched generation see the same tokens.
        """
        unseen_from = past_key_values if next_sequence_length is None else None
        text_length = self._text_length(input_ids, attention_mask, kwargs.get("position_ids"), unseen_from)
        new_tokens = None if is_first_iteration else next_sequence_length
        windows = self._slide_windows(input_ids, attention_mask, text_length, new_tokens)
        if windows is not None:
            input_ids, attention_mask, kwargs["position_ids"], read_again = windows
            if read_again:
                next_sequence_length = None
                if past_key_values is not None:
                    past_key_values.reset()
                    if length := int(past_key_values.get_seq_length()):  # before 5.18, `reset` keeps the length
                        past_key_values.crop(-length)

        return super().prepare_inputs_for_generation(
            input_ids,
            next_sequence_length=next_sequence_length,
            **{_CACHE: past_key_values},
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )

    @staticmethod
    def _text_length(input_ids, attention_mask, position_ids, past_key_values) -> int:
        """The length of the text so far; `input_ids` may hold only the part that is not in the cache yet."""
        known = [tensor.shape[-1] for tensor in (input_ids, attention_mask, position_ids) if tensor is not None]
        if max(known) > input_ids.shape[1] or past_key_values is None:
            return max(known)
        return input_ids.shape[1] + int(past_key_values.get_seq_length())

    def _get_stopping_criteria(self, *args, **kwargs):
        criteria = super()._get_stopping_criteria(*args, **kwargs)
        for criterion in criteria:
            if hasattr(criterion, "max_position_embeddings"):
                criterion.max_position_embeddings = None  # the window slides: no warning past the context
        return criteria

    def _slide_windows(self, input_ids, attention_mask, text_length: int, new_tokens: int | None):
        """The window of each row (ids, attention mask, positions), and whether the model has to read it from its start.

        `new_tokens` are not in the cache yet (None: all of them). Returns None if no row's text exceeds the context.
        """
        context = self.config.max_position_embeddings
        if text_length <= context:
            return None
        mask = torch.ones(1, text_length) if attention_mask is None else attention_mask
        lengths = mask.long().cumsum(dim=-1)  # B T: of each row's text up to each position; B = 1 without a mask
        starts = self._window_start(lengths[:, -1:])
        before = starts if new_tokens is None else self._window_start(lengths[:, -1 - new_tokens, None])
        in_window = lengths > starts
        # Reading from the device waits for all its work, so this reads three answers at once.
        facts = torch.stack([starts.any(), (starts != before).any(), in_window.any(dim=0).int().argmax()])
        is_longer, has_moved, first = facts.tolist()
        if not is_longer:
            return None  # only with its padding is the batch longer than the context
        if new_tokens is not None and new_tokens > 1:
            raise ValueError("assisted generation does not reach past the model's context")
        width = text_length - first
        if input_ids.shape[1] < width:
            raise ValueError(
                f"generation past the context of {context} tokens reads old tokens again: pass all of them as "
                "input_ids, without inputs_embeds and without prefill_chunk_size"
            )
        input_ids = input_ids[:, -width:]
        if attention_mask is not None:
            attention_mask = (attention_mask * in_window)[:, -width:]
        read_again = new_tokens is None or bool(has_moved)
        return input_ids, attention_mask, self._window_positions(input_ids, attention_mask), read_again

    def _window_start(self, text_length: torch.Tensor) -> torch.Tensor:
        """The first token that the model still reads when the text has `text_length` tokens."""
        context = self.config.max_position_embeddings
        stride = context + 1 - max(context // 2, 1)  # tokens that leave when the newest half stays
        return -((context - text_length) // stride).clamp(max=0) * stride  # the quotient rounded up

    @staticmethod
    def _window_positions(input_ids: torch.LongTensor, attention_mask: torch.Tensor | None) -> torch.LongTensor:
        if attention_mask is None:
            return torch.arange(input_ids.shape[1], device=input_ids.device).unsqueeze(0)
        return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)  # padding is on the left


class GPTLiteTaskHead:
    """Lets the generic heads of transformers find the decoder."""

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
