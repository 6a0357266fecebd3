"""Validation loss in nats per token over the whole split, and what is computed from it.

result = evaluate_loss(model, EvaluationWindows(ids, context=256))
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, SequentialSampler

from ..data.examples import EvaluationExamples
from ..data.windows import IGNORED, EvaluationWindows, whole_batch


def window_losses(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of -ln p over the targets of each window, in nats, and the number of targets.

    Args:
        logits: `(batch, tokens, vocab_size)`.
        targets: `(batch, tokens)`; -100 is not counted.

    Returns:
        Two float32 tensors `(batch,)`.
    """
    losses = torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return losses.view_as(targets).sum(-1), targets.ne(IGNORED).float().sum(-1)


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
def predictions(
    model, windows: EvaluationWindows | EvaluationExamples, batch_size: int = 64
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The logits `(batch, tokens, vocab_size)` and targets `(batch, tokens)` of all `windows`, one batch at a time."""
    was_training = model.training
    model.eval()
    collate: Any = whole_batch
    for batch in DataLoader(windows, batch_size, sampler=SequentialSampler(windows), collate_fn=collate):
        logits = model(input_ids=batch["input_ids"].to(model.device), use_cache=False).logits
        yield logits, batch["shift_labels"].to(model.device)
    model.train(was_training)


def evaluate_loss(model, windows: EvaluationWindows | EvaluationExamples, batch_size: int = 64) -> float:
    """Mean -ln p per token over all of `windows`, in the model's own precision."""
    return mean_loss([window_losses(*batch) for batch in predictions(model, windows, batch_size)])


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
