"""Knowledge distillation (Hinton et al., 2015): a model learns from the text, and from what other models expect of it.

trainer = CausalLMTrainer(model, args, train_dataset=windows, teachers=[one, another])
"""

from collections.abc import Sequence
from typing import Any

import torch

from ..data.windows import IGNORED
from .arguments import CausalLMTrainingArguments
from .hardware import autocast


TEACHERS_SHARE = 0.7  # of the loss; the rest is the cross-entropy of the text (`benchmarks/tuning.md`)


class DistillationLoss:
    """The Trainer's `compute_loss_func`: cross-entropy with the next tokens, and with the teachers' mean probabilities.

    The mean of several models that were trained on the same text with other seeds predicts it better than any of them.
    A model that learns from it can read a short text more often without memorizing it.
    """

    def __init__(self, teachers: Sequence[Any], args: CausalLMTrainingArguments):
        """
        Args:
            teachers: Causal language models with the vocabulary of the model that learns, on its device.
        """
        self.teachers, self.args = [teacher.eval() for teacher in teachers], args
        self.expected = torch.empty(0)

    @torch.no_grad()
    def ask(self, input_ids: torch.Tensor) -> None:
        """Keep the teachers' probabilities of each next token, for the call that follows: `(batch, tokens, vocab)`."""
        with autocast(self.args):
            logits = [teacher(input_ids=input_ids, use_cache=False).logits for teacher in self.teachers]
        self.expected = sum(each.float().softmax(-1) for each in logits) / len(logits)

    def __call__(self, outputs, labels: torch.Tensor, num_items_in_batch=None) -> torch.Tensor:
        is_counted = labels.ne(IGNORED)
        count = is_counted.sum() if num_items_in_batch is None else num_items_in_batch
        log_p = outputs.logits.float().log_softmax(-1)
        of_text = -log_p.gather(-1, labels.clamp(min=0)[..., None]).squeeze(-1)
        of_teachers = -(self.expected * log_p).sum(-1)
        losses = (1 - TEACHERS_SHARE) * of_text + TEACHERS_SHARE * of_teachers
        return losses.masked_fill(~is_counted, 0.0).sum() / count
