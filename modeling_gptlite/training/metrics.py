"""Validation loss in nats per token over the whole split, and what is computed from it.

result = evaluate_loss(model, EvaluationWindows(ids, context=256))
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, SequentialSampler

from ..data.examples import EvaluationExamples
from ..data.windows import IGNORED, EvaluationWindows, whole_batch


LOGITS = 1 << 24  # most that are held at once: 64 MB in float32

Measure = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, ...]]


# ---- Values per token ----------------------------------------------------------------------------------------------


class Head(NamedTuple):
    """The layer of a model whose output is the logits, and nothing is done with them afterwards."""

    layer: torch.nn.Module
    vocab_size: int


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
    tokens = max(1, LOGITS // head.vocab_size)
    parts: list[tuple[torch.Tensor, ...]] = []

    def in_chunks(layer, args):  # inside the forward pass: in its precision, with its parameters gathered
        (hidden_states,) = args
        chunks = zip(hidden_states.flatten(0, 1).split(tokens), targets.flatten().split(tokens), strict=True)
        parts.extend(measure(layer.forward(chunk), chunk_targets) for chunk, chunk_targets in chunks)
        return (hidden_states[:1, :1],)

    with head.layer.register_forward_pre_hook(in_chunks), torch.compiler.set_stance("force_eager"):
        model(input_ids=input_ids, use_cache=False)
    return tuple(torch.cat(values).view_as(targets) for values in zip(*parts, strict=True))


# ---- Losses --------------------------------------------------------------------------------------------------------


def token_losses(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor]:
    """A `Measure`: -ln p of each target, in nats and float32; 0 where the target is -100."""
    losses = torch.nn.functional.cross_entropy(
        logits.float().flatten(0, -2), targets.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return (losses.view_as(targets),)


def window_losses(losses: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of `losses` and the number of targets of each window, in float32.

    Args:
        losses, targets: `(batch, tokens)`; -100 is not counted.

    Returns:
        Two tensors `(batch,)`.
    """
    return losses.sum(-1), targets.ne(IGNORED).float().sum(-1)


def smoothed_loss(smoothing: float) -> Callable[..., torch.Tensor]:
    """The Trainer's `compute_loss_func` with label smoothing (Szegedy et al., 2015), for labels that are shifted.

    The Trainer's own shifts them again for the classes that transformers lists, such as GPT-2.
    """

    def loss(outputs, labels: torch.Tensor, num_items_in_batch=None) -> torch.Tensor:
        total = torch.nn.functional.cross_entropy(
            outputs.logits.float().flatten(0, 1),
            labels.flatten(),
            ignore_index=IGNORED,
            label_smoothing=smoothing,
            reduction="sum",
        )
        return total / (labels.ne(IGNORED).sum() if num_items_in_batch is None else num_items_in_batch)

    return loss


def mean_loss(per_window: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """Nats per token, from all that `window_losses` returned."""
    losses, counts = (torch.cat(tensors).cpu().double().sum() for tensors in zip(*per_window, strict=True))
    return (losses / counts).item()


@torch.inference_mode()
def measure_tokens(
    model, windows: EvaluationWindows | EvaluationExamples, batch_size: int, measure: Measure
) -> Iterator[tuple[tuple[torch.Tensor, ...], torch.Tensor]]:
    """What `measure` returns for all tokens of `windows`, and the targets, one batch `(batch, tokens)` at a time."""
    was_training = model.training
    model.eval()
    head = plain_head(model)
    collate: Any = whole_batch
    for batch in DataLoader(windows, batch_size, sampler=SequentialSampler(windows), collate_fn=collate):
        targets = batch["shift_labels"].to(model.device)
        yield by_token(model, head, batch["input_ids"].to(model.device), targets, measure), targets
    model.train(was_training)


def evaluate_loss(model, windows: EvaluationWindows | EvaluationExamples, batch_size: int = 64) -> float:
    """Mean -ln p per token over all of `windows`, in the model's own precision."""
    batches = measure_tokens(model, windows, batch_size, token_losses)
    return mean_loss([window_losses(losses, targets) for (losses,), targets in batches])


def perplexity(loss: float) -> float:
    """e to the loss: the number of equally likely tokens that are as hard to guess; infinite if that is too large."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def bits_per_character(loss: float, tokens: int, characters: int) -> float:
    """`loss` nats per token over `tokens` predicted tokens of a text of `characters` characters, in bits per character.

    Comparable across tokenizers. `tokens` does not count the first token, which is not predicted.
    """
    return loss * tokens / characters / math.log(2)
