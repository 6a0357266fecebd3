"""Seconds that the parts of a run take on this machine, measured in a bare loop over its own batches.

costs = time_run(lambda: build_model(...), args, data, lambda model, tokens: write_sample(model, ...), (64, 500))
"""

import gc
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Subset
from transformers import Trainer

from ..data.encode import RunData
from ..data.windows import in_pieces
from .arguments import CausalLMTrainingArguments
from .hardware import autocast, give_back_memory, keep_freed_memory, training_attention
from .head import TrainingLoss, training_loss
from .metrics import evaluate_loss
from .trainer import optimizers_of


SHARE, MOST_SECONDS = 0.02, 5.0  # how long steps are timed: this share of the minutes, and no more than this
LEAST_STEPS = 3  # to time, besides the first one
SLOW = 2.0  # seconds of a step from which one more is enough
SAMPLE_TOKENS = 32
# Seconds of what is not timed here, measured on two cores (`benchmarks/tuning.md`): making the Trainer; what it does in
# a step besides the model and the optimizer; the plot and the files of a finished run; a checkpoint.
STARTING, TRAINER, FINISHING = 0.3, 0.001, 0.4
CHECKPOINT, BYTES_PER_SECOND = 0.03, 600e6
TEACHER = 1.25  # times the evaluation of as many windows: batches are smaller, and probabilities are compared

now = time.perf_counter


@dataclass(frozen=True)
class Costs:
    """Seconds that the parts of a run take on this machine."""

    start: float  # until the end of the first step: building the model and the Trainer, compilation
    step: float  # a later step
    short_step: float  # while `short_context` applies
    evaluation: float  # the evaluation of the whole validation split, with its sample
    checkpoint: float
    finish: float = 0.0  # what follows the last step: the evaluation in full precision, the sample, saving
    tokens_per_step: int = 0  # of all processes
    forward: float = 0.0  # what a teacher adds to a step: a forward pass over its windows, without gradients
    sample: float = 0.0  # the sample that is part of `start` and of each `evaluation`
    last_sample: float = 0.0  # the one that is part of `finish`

    def taught_by(self, teachers: int, each: "Costs") -> "Costs":
        """With what this number of teachers, with these costs, adds to each step."""
        more = teachers * each.forward
        return replace(self, step=self.step + more, short_step=self.short_step + more)

    def with_steps_of(self, others: int, each: "Costs") -> "Costs":
        """With a step of each of a number of other models in each step."""
        return replace(self, step=self.step + others * each.step, short_step=self.short_step + others * each.short_step)


def time_run(
    build: Callable[[], Any],
    args: CausalLMTrainingArguments,
    data: RunData,
    sample: Callable[[Any, int], Any],
    sample_lengths: tuple[int, int],
    evaluates_again: bool = True,
) -> Costs:
    """Train a model for some steps, evaluate one batch and write a short sample, each timed. Nothing is saved.

    All processes must call this together; all get what the main process measured.

    Args:
        build: Returns the model. It is trained here, and dropped.
        sample: Generates a number of tokens with a model.
        sample_lengths: Tokens of the sample at each evaluation, and of the last one.
        evaluates_again: The finished model is evaluated in full precision.
    """
    keep_freed_memory()
    began = now()
    model = build().to(args.device)
    building = now() - began
    trained = _as_trained(model, args, data)
    steps = _Steps(trained, training_loss(model, args), _optimizer(model, args), args, data)
    first_short, short_step = steps.time(args.short_context) if args.short_context else (0.0, 0.0)
    first, step = steps.time(None)
    with autocast(args):
        evaluated = trained if args.world_size == 1 else model  # each process evaluates its part
        first_evaluation, evaluation = _time_evaluation(evaluated, args, data)
        sampling = _time_sample(model, sample, sample_lengths[0])
    last_evaluation = _time_evaluation(model, args, data)[1] if evaluates_again else 0.0
    last_sampling = _time_sample(model, sample, sample_lengths[1])
    batch = min(len(data.validation), args.per_device_eval_batch_size)
    batches = math.ceil(len(data.validation) / args.per_device_eval_batch_size)
    trained_bytes = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    costs = Costs(
        # With torch.compile, whole windows, short ones and evaluation are compiled, each at its first batch.
        start=building + STARTING + first_short + first + first_evaluation - evaluation + sampling,
        step=step + TRAINER,
        short_step=(short_step or step) + TRAINER,
        evaluation=batches / args.world_size * evaluation + sampling,
        checkpoint=CHECKPOINT + 3 * trained_bytes / BYTES_PER_SECOND,
        finish=batches * last_evaluation + last_sampling + FINISHING,
        tokens_per_step=data.tokens_per_step,
        forward=TEACHER * evaluation * args.train_batch_size * args.gradient_accumulation_steps / batch,
        sample=sampling,
        last_sample=last_sampling,
    )
    del steps, trained, model
    gc.collect()
    give_back_memory()
    (costs,) = broadcast_object_list([costs])
    return costs


class _Steps:
    """Optimizer steps on the first windows of a run, as the Trainer takes them."""

    def __init__(
        self,
        model: Any,
        loss: TrainingLoss | None,
        optimizer: torch.optim.Optimizer,
        args: CausalLMTrainingArguments,
        data: RunData,
    ):
        self.model, self.loss, self.optimizer, self.args, self.data = model.train(), loss, optimizer, args, data
        self.taken = 0

    def time(self, short_context: int | None) -> tuple[float, float]:
        """Seconds of the first step, and of a later one."""
        began = now()
        self.take(short_context)
        first = self.finished() - began
        minutes = math.inf if self.args.minutes is None else self.args.minutes
        seconds, count = min(MOST_SECONDS, SHARE * 60 * minutes), 0
        least = LEAST_STEPS if first < SLOW else 1
        # The processes take their steps together, as many as the main one.
        while count < least or not broadcast_object_list([now() - began - first >= seconds])[0]:
            self.take(short_context)
            count += 1
        return first, (self.finished() - began - first) / count

    def take(self, short_context: int | None) -> None:
        size = self.args.train_batch_size
        for _ in range(self.args.gradient_accumulation_steps):
            batch = self.data.train.__getitems__(list(range(self.taken * size, (self.taken + 1) * size)))
            inputs = {name: tensor.to(self.args.device, non_blocking=True) for name, tensor in batch.items()}
            self.taken += 1
            if short_context:
                inputs = in_pieces(inputs, short_context, getattr(self.data.train, "begin", None))
            (self.loss_of(inputs) / self.args.gradient_accumulation_steps).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.args.max_grad_norm or math.inf)
        self.optimizer.step()
        self.model.zero_grad()

    def loss_of(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        with autocast(self.args):
            if self.loss is None:
                return self.model(**inputs).loss
            with self.loss.headless():
                return self.loss(self.model(input_ids=inputs["input_ids"]), inputs["labels"])

    def finished(self) -> float:
        """The time at which the device has done everything that was asked of it."""
        if self.args.device.type != "cpu":
            torch.accelerator.synchronize()
        return now()


def _time_evaluation(model: Any, args: CausalLMTrainingArguments, data: RunData) -> tuple[float, float]:
    """Seconds of a first evaluation batch and of a second one."""
    batch: Any = Subset(data.validation, range(min(len(data.validation), args.per_device_eval_batch_size)))
    seconds = []
    for _ in range(2):
        began = now()
        evaluate_loss(model, batch, args.per_device_eval_batch_size)  # reads the loss, so the device has finished
        seconds.append(now() - began)
    return seconds[0], seconds[1]


def _time_sample(model: Any, sample: Callable[[Any, int], Any], length: int) -> float:
    """Seconds of a sample of this length, from a short one."""
    if not length:
        return 0.0
    sample(model, 1)  # what only the first call does
    began = now()
    sample(model, SAMPLE_TOKENS)
    return (now() - began) * length / SAMPLE_TOKENS


def _as_trained(model: Any, args: CausalLMTrainingArguments, data: RunData) -> Any:
    """The model with the attention and the activations of the run, for several processes, compiled."""
    if attention := training_attention(args, getattr(data.train, "context", math.inf), model.config):
        model.set_attn_implementation(attention)
    if getattr(args, "activation_checkpointing", args.gradient_checkpointing):  # renamed in transformers 5.23
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    if args.world_size > 1:
        devices = None if args.device.type == "cpu" else [args.device]
        model = DistributedDataParallel(model, device_ids=devices)
    if args.torch_compile:
        model = torch.compile(model, backend=args.torch_compile_backend, mode=args.torch_compile_mode)
    return model


def _optimizer(model: Any, args: CausalLMTrainingArguments) -> torch.optim.Optimizer:
    if (chosen := optimizers_of(args)) is not None:
        factory, settings = chosen
        return factory()(model, **settings)
    kind, settings = Trainer.get_optimizer_cls_and_kwargs(args, model)
    return kind([parameter for parameter in model.parameters() if parameter.requires_grad], **settings)
