"""Eager attention for training on a CPU in bf16, where the backward pass of PyTorch's fused kernel is slow.

model.set_attn_implementation(SHORT_WINDOWS)
"""

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask


SHORT_WINDOWS = "short_windows"


def short_window_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """Eager attention that keeps the `(batch, heads, tokens, tokens)` weights in the dtype of the inputs.

    Args:
        query: `(batch, heads, tokens, head_dim)`; `key` and `value` may have fewer heads.
        attention_mask: `(batch, 1, tokens, tokens)`, True where a token is attended to; None for a causal mask.

    Returns:
        `(batch, tokens, heads, head_dim)`, and None instead of the weights.
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    weights = (query * scaling) @ key.transpose(2, 3)
    if attention_mask is None:
        cached = weights.shape[-1] - weights.shape[-2]  # tokens before the first query
        attention_mask = torch.ones(weights.shape[-2:], dtype=torch.bool, device=weights.device).tril(cached)
    nothing = torch.zeros((), dtype=weights.dtype, device=weights.device)
    hidden = nothing.masked_fill(~attention_mask, torch.finfo(weights.dtype).min)
    with torch.autocast(weights.device.type, enabled=False):  # the kernel accumulates in fp32 without it
        weights = torch.softmax(weights + hidden, dim=-1)
    weights = torch.nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), None


AttentionInterface.register(SHORT_WINDOWS, short_window_attention)
AttentionMaskInterface.register(SHORT_WINDOWS, sdpa_mask)  # None for a causal mask
