"""Validation loss in nats per token over the whole split, and what is computed from it.

result = evaluate_loss(model, EvaluationWindows(ids, context=256))
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, SequentialSampler
from tqdm import tqdm

from ..data.examples import EvaluationExamples
from ..data.windows import IGNORED, EvaluationWindows, whole_batch
from .head import Measure, by_token, plain_head


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


def mean_loss(per_window: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """Nats per token, from all that `window_losses` returned."""
    losses, counts = (torch.cat(tensors).cpu().double().sum() for tensors in zip(*per_window, strict=True))
    return (losses / counts).item()


@torch.inference_mode()
def measure_tokens(
    model, windows: EvaluationWindows | EvaluationExamples, batch_size: int, measure: Measure
) -> Iterator[tuple[tuple[torch.Tensor, ...], torch.Tensor]]:
    """What `measure` returns for all tokens of `windows`, and the targets, one batch `(batch, tokens)` at a time.

    On a terminal, a bar shows the progress of what takes more than a few seconds.
    """
    was_training = model.training
    model.eval()
    head = plain_head(model)
    collate: Any = whole_batch
    batches = DataLoader(windows, batch_size, sampler=SequentialSampler(windows), collate_fn=collate)
    for batch in tqdm(batches, "evaluating", disable=None, delay=3, leave=False):
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
