"""What a person sees while a model trains, one line that moves; and how training ends when it is told to."""

import signal
import sys
import time

import torch
from transformers import TrainerCallback


class LiveLine(TrainerCallback):
    """`step 250/1,000 | loss 1.92 | val 1.85 | 84,000 tokens/s | 0:23 left`, in place on a terminal.

    Where the output is no terminal, one line at each evaluation.

    Args:
        tokens_per_step: Of all devices and accumulation steps together.
    """

    def __init__(self, tokens_per_step: int, stream=None):
        self.tokens_per_step = tokens_per_step
        self.stream = stream or sys.stdout
        self.loss = self.validation_loss = None

    def on_train_begin(self, args, state, control, **kwargs):
        self.began, self.first_step = time.perf_counter(), state.global_step

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero:
            return
        self.loss = logs.get("loss", self.loss)
        self.validation_loss = logs.get("eval_loss", self.validation_loss)
        evaluated = "eval_loss" in logs
        if "train_runtime" not in logs and (evaluated or self.stream.isatty()):
            end = "\n" if evaluated else ""
            start = "\r\x1b[K" if self.stream.isatty() else ""
            print(start + self._line(state), end=end, file=self.stream, flush=True)

    def _line(self, state) -> str:
        done = state.global_step - self.first_step
        seconds = max(time.perf_counter() - self.began, 1e-9)
        left = round(seconds / max(done, 1) * (state.max_steps - state.global_step))
        parts = [f"step {state.global_step:,}/{state.max_steps:,}"]
        if self.loss is not None:
            parts.append(f"loss {self.loss:.4f}")
        if self.validation_loss is not None:
            parts.append(f"val {self.validation_loss:.4f}")
        parts += [f"{done * self.tokens_per_step / seconds:,.0f} tokens/s", f"{left // 60}:{left % 60:02d} left"]
        return " | ".join(parts)


class StopOnSignal(TrainerCallback):
    """Ctrl-C or SIGTERM ends training after the step in hand, with a checkpoint; a second Ctrl-C ends it at once.

    Where many processes train, all of them stop at the next logging step after any was told to: at the same one.

    Attributes:
        received: The signal's number, or 0.
    """

    def __init__(self):
        self.received = 0

    def on_train_begin(self, args, state, control, **kwargs):
        self._before = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}

    def _receive(self, number, frame):
        self.received = number
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def on_step_end(self, args, state, control, **kwargs):
        if args.world_size > 1:
            if state.global_step % state.logging_steps:
                return  # the loss is read from the device at logging steps only; this is no more often
            received = torch.tensor(self.received, device=args.device)
            torch.distributed.all_reduce(received, torch.distributed.ReduceOp.MAX)
            self.received = int(received)
        if self.received:
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args, state, control, **kwargs):
        for number, handler in self._before.items():
            signal.signal(number, handler)
