"""The one number: validation loss in nats per token over the whole split, and what follows from it.

result = evaluate_loss(model, EvaluationWindows(ids, context=256))
"""

import math
from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, SequentialSampler

from .data import IGNORED, EvaluationWindows, whole_batch


def window_losses(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of -ln p over the targets of each window, in nats, and how many there are.

    Args:
        logits: `(batch, tokens, vocab_size)`.
        targets: `(batch, tokens)`, -100 where there is none.

    Returns:
        Two float32 tensors `(batch,)`.
    """
    losses = torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return losses.view_as(targets).sum(-1), targets.ne(IGNORED).float().sum(-1)


def mean_loss(per_window: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """Nats per token over everything that `window_losses` returned."""
    losses, counts = (torch.cat(tensors).cpu().double().sum() for tensors in zip(*per_window, strict=True))
    return (losses / counts).item()


@torch.inference_mode()
def predictions(model, windows: EvaluationWindows, batch_size: int = 64) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The logits `(batch, tokens, vocab_size)` and targets `(batch, tokens)` of all `windows`, batch after batch."""
    was_training = model.training
    model.eval()
    for batch in DataLoader(windows, batch_size, sampler=SequentialSampler(windows), collate_fn=whole_batch):
        logits = model(input_ids=batch["input_ids"].to(model.device), use_cache=False).logits
        yield logits, batch["shift_labels"].to(model.device)
    model.train(was_training)


def evaluate_loss(model, windows: EvaluationWindows, batch_size: int = 64) -> float:
    """Mean -ln p per token over all of `windows`, in the model's own precision."""
    return mean_loss([window_losses(*batch) for batch in predictions(model, windows, batch_size)])


def perplexity(loss: float) -> float:
    """e to the loss: the number of equally likely tokens that are as hard to guess."""
    return math.exp(loss)


def bits_per_character(loss: float, tokens: int, characters: int) -> float:
    """`loss` nats per token over `tokens` predicted tokens of a text of `characters` characters, in bits per character.

    Compares across tokenizers. The first token, which nothing predicts, is left out of `tokens`.
    """
    return loss * tokens / characters / math.log(2)
