"""The head of a model with a large vocabulary, a chunk of tokens at a time: all logits are never held at once.

losses, = by_token(model, plain_head(model), input_ids, targets, token_losses)  # evaluation
loss = training_loss(model, args)  # the Trainer's `compute_loss_func`
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from ..data.windows import IGNORED
from .arguments import CausalLMTrainingArguments


LOGITS = 1 << 24  # most that are held at once: 64 MB in float32
LARGE_VOCABULARY = 1 << 14  # from this many tokens on, training computes logits in chunks

Measure = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, ...]]


class Head(NamedTuple):
    """The layer of a model whose output is the logits, and nothing is done with them afterwards."""

    layer: torch.nn.Module
    vocab_size: int

    @property
    def chunk(self) -> int:
        """Tokens whose logits are held at once."""
        return max(1, LOGITS // self.vocab_size)


@torch.no_grad()
def plain_head(model, wrapped=None) -> Head | None:
    """The head of a causal language model in evaluation mode; None if the logits are not the output of that layer.

    Some classes scale or cap them (Cohere, Gemma 2, Granite). Rather than by name, these are found by what the forward
    pass makes of hidden states that are known.

    Args:
        wrapped: What is called instead of `model`: the same model in mixed precision, compiled, or distributed.
    """
    layer = model.get_output_embeddings()
    if layer is None:
        return None
    given: list[torch.Tensor] = []

    def replace(layer, args):
        (states,) = args
        known = torch.linspace(-10, 10, states.shape[-1], dtype=states.dtype, device=states.device).expand_as(states)
        given.append(layer.forward(known))
        return (known,)

    tokens = torch.zeros((2, 1), dtype=torch.long, device=model.device)
    # A graph that is compiled already would not call the hook.
    with layer.register_forward_pre_hook(replace), torch.compiler.set_stance("force_eager"):
        logits = (model if wrapped is None else wrapped)(input_ids=tokens, use_cache=False).logits
    is_plain = len(given) == 1 and given[0].shape == logits.shape and torch.equal(given[0].float(), logits.float())
    return Head(layer, logits.shape[-1]) if is_plain else None


def by_token(
    model, head: Head | None, input_ids: torch.Tensor, targets: torch.Tensor, measure: Measure
) -> tuple[torch.Tensor, ...]:
    """What `measure(logits, targets)` returns for all tokens, without all logits at once if they are many.

    Args:
        model: What is called, in evaluation mode.
        head: Of that model, from `plain_head`. None: all logits are computed at once.
        input_ids, targets: `(batch, tokens)`.
        measure: Called with logits `(..., vocab_size)` and targets `(...)`, returns tensors `(...)`.

    Returns:
        Tensors `(batch, tokens)`.
    """
    if head is None or targets.numel() * head.vocab_size <= LOGITS:
        return measure(model(input_ids=input_ids, use_cache=False).logits, targets)
    tokens = head.chunk
    parts: list[tuple[torch.Tensor, ...]] = []

    def in_chunks(layer, args):  # inside the forward pass: in its precision, with its parameters gathered
        (hidden_states,) = args
        chunks = zip(hidden_states.flatten(0, 1).split(tokens), targets.flatten().split(tokens), strict=True)
        parts.extend(measure(layer.forward(chunk), chunk_targets) for chunk, chunk_targets in chunks)
        return (hidden_states[:1, :1],)

    with head.layer.register_forward_pre_hook(in_chunks), torch.compiler.set_stance("force_eager"):
        model(input_ids=input_ids, use_cache=False)
    return tuple(torch.cat(values).view_as(targets) for values in zip(*parts, strict=True))


# ---- Training ------------------------------------------------------------------------------------------------------


class TrainingLoss:
    """The Trainer's `compute_loss_func`: cross-entropy with label smoothing (Szegedy et al., 2015), in chunks.

    The Trainer's own smoothing shifts labels that are shifted already, for the classes that transformers lists.
    """

    def __init__(self, head: Head | None, dtype: torch.dtype | None, smoothing: float = 0.0):
        """
        Args:
            head: Left out of the forward pass in `headless`, and computed here. None: the model computes the logits.
            dtype: Of the head's products; None: that of its weight.
        """
        self.head, self.dtype, self.smoothing = head, dtype, smoothing

    @contextlib.contextmanager
    def headless(self) -> Iterator[None]:
        """The forward pass returns the hidden states as `logits`, if the head is computed here."""
        if self.head is None:
            yield
            return
        layer: Any = self.head.layer
        layer.forward = _unchanged
        try:
            yield
        finally:
            del layer.forward

    def __call__(self, outputs, labels: torch.Tensor, num_items_in_batch=None) -> torch.Tensor:
        count = labels.ne(IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        states, targets = outputs.logits.flatten(0, 1), labels.flatten()
        if self.head is not None:
            layer: Any = self.head.layer
            dtype = self.dtype or layer.weight.dtype
            settings = (1.0 / count, self.smoothing, dtype, self.head.chunk)
            return _HeadLoss.apply(states, layer.weight, layer.bias, targets, *settings)
        total = torch.nn.functional.cross_entropy(
            states.float(), targets, ignore_index=IGNORED, label_smoothing=self.smoothing, reduction="sum"
        )
        return total / count


def training_loss(model, args: CausalLMTrainingArguments, is_sharded: bool = False) -> TrainingLoss | None:
    """The loss to train a model with; None if it is the model's own.

    Args:
        model: Not yet wrapped for mixed precision, compilation or several processes.
        is_sharded: The head's weight is whole only inside the forward pass (FSDP, DeepSpeed).
    """
    head = None
    if not is_sharded and model.config.get_text_config().vocab_size >= LARGE_VOCABULARY:
        was_training = model.training
        head = plain_head(model.eval())
        model.train(was_training)
        if head and not (isinstance(head.layer, torch.nn.Linear) and len(head.layer.weight) == head.vocab_size):
            head = None  # quantized, or with an adapter
    if head is None and not args.label_smoothing_factor:
        return None
    dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
    return TrainingLoss(head, dtype, args.label_smoothing_factor)


def _unchanged(states: torch.Tensor) -> torch.Tensor:
    return states


class _HeadLoss(torch.autograd.Function):
    """`scale` times the summed cross-entropy of a linear head.

    The forward pass computes the gradients as well, chunk by chunk, so that the logits of a chunk are computed once and
    dropped (Hsu et al., 2024, Liger kernels, arXiv 2410.10989).
    """

    @staticmethod
    def forward(ctx, states, weight, bias, targets, scale, smoothing, dtype, chunk):
        loss = torch.zeros((), device=states.device)
        inputs, matrix = states.to(dtype), weight.to(dtype)
        states_gradient = torch.empty_like(inputs)
        weight_gradient = torch.zeros_like(weight, dtype=torch.float32) if weight.requires_grad else None
        bias_gradient = torch.zeros_like(bias, dtype=torch.float32) if bias is not None else None
        with torch.autocast(states.device.type, enabled=False):
            for start in range(0, len(inputs), chunk):
                piece, counted = inputs[start : start + chunk], targets[start : start + chunk, None]
                is_counted = counted.ne(IGNORED)
                wanted = counted.clamp(min=0)
                logits = piece @ matrix.T
                if bias is not None:
                    logits += bias.to(dtype)
                gradient = torch.log_softmax(logits.float(), dim=-1)
                losses = (smoothing - 1) * gradient.gather(1, wanted)
                if smoothing:
                    losses -= smoothing * gradient.mean(1, keepdim=True)
                loss += losses.mul_(is_counted).sum()
                # softmax - target, from the same memory
                gradient.exp_().scatter_add_(1, wanted, gradient.new_full((1, 1), smoothing - 1).expand_as(wanted))
                if smoothing:
                    gradient -= smoothing / gradient.shape[-1]
                gradient.masked_fill_(~is_counted, 0.0)
                logits.copy_(gradient)
                torch.mm(logits, matrix, out=states_gradient[start : start + chunk])
                if weight_gradient is not None:
                    weight_gradient += logits.T @ piece
                if bias_gradient is not None:
                    bias_gradient += gradient.sum(0)
        found = ((states, states_gradient), (weight, weight_gradient), (bias, bias_gradient))
        # They are scaled in the backward pass, together with its gradient: 1 / tokens alone is too small for float16.
        ctx.gradients, ctx.scale = [each if each is None else each.to(of.dtype) for of, each in found], scale
        return loss * scale

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output):
        gradients, ctx.gradients = ctx.gradients, None  # each is used once, so it can be overwritten
        scale = grad_output * ctx.scale
        of_states, of_weight, of_bias = (each if each is None else each.mul_(scale) for each in gradients)
        return of_states, of_weight, of_bias, None, None, None, None, None
