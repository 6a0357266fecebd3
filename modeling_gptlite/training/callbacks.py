"""What is shown while a model trains (a status line, samples), and how training ends early.

trainer = CausalLMTrainer(..., callbacks=[LiveLine(tokens_per_step), Samples(tokenizer, "ROMEO:", length=64, seed=0)])
"""

import contextlib
import errno
import math
import os
import shutil
import signal
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import TextIO

import torch
from transformers import TrainerCallback

from ..decoding import SAMPLING, prompt_ids
from ..errors import UserError
from ..loading import longest_text


SAMPLES_FILE = "samples.md"
SECONDS_BETWEEN_LINES = 30  # of output that is not a terminal
READER_IS_GONE = (errno.EPIPE, errno.EIO, errno.EINVAL)  # of a pipe, of a terminal, of a pipe on Windows


def say(text: str = "", end: str = "\n", stream: TextIO | None = None) -> None:
    """Print what a run shows, at once. What the stream cannot encode is escaped: the text comes from the data.

    If its reader is gone (`| head`, a closed terminal), standard error says so, and all further output is discarded:
    hours of training do not depend on who watches them.
    """
    stream = stream or sys.stdout
    encoding = stream.encoding or "utf-8"  # that of a StringIO is None
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), end=end, file=stream, flush=True)
    except OSError as error:
        if error.errno not in READER_IS_GONE:
            raise
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            print("the output has no reader any more; training continues without it", file=sys.stderr, flush=True)


class LiveLine(TrainerCallback):
    """`step 250/1,000 | loss 1.92 | val 1.95 (+0.03) | 84,000 tokens/s | 0:23 left`; on a terminal, in place.

    If the output is not a terminal, or a dumb one, a line is printed at each evaluation and every 30 seconds.

    Args:
        tokens_per_step: Over all devices and accumulation steps.
    """

    def __init__(self, tokens_per_step: int, stream=None):
        self.tokens_per_step = tokens_per_step
        self.stream = stream or sys.stdout
        self.loss = self.validation_loss = None
        self.gap = ""  # between the two, at the last evaluation
        self.in_place = self.stream.isatty() and os.environ.get("TERM") != "dumb"
        self._is_open = False  # the line on the terminal has not ended yet

    def on_train_begin(self, args, state, control, **kwargs):
        self.began = self.printed = time.perf_counter()
        self.first_step = state.global_step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.first_step:
            self.began = time.perf_counter()  # after the evaluation before training

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero:
            return
        self.loss = logs.get("loss", self.loss)
        if "eval_loss" in logs:
            self.validation_loss = logs["eval_loss"]
            self.gap = f" ({self.validation_loss - self.loss:+.2f})" if self.loss is not None else ""
        ends = "eval_loss" in logs or not math.isfinite(logs.get("loss", 0.0))  # an error message follows
        ends = ends or (not self.in_place and time.perf_counter() - self.printed >= SECONDS_BETWEEN_LINES)
        if "train_runtime" not in logs and (ends or self.in_place):
            self.printed = time.perf_counter()
            line = self._line(state)
            if self.in_place:
                line = "\r\x1b[K" + line[: shutil.get_terminal_size().columns - 1]
            say(line, "\n" if ends else "", self.stream)
            self._is_open = not ends

    def on_train_end(self, args, state, control, **kwargs):
        if self._is_open:
            say(stream=self.stream)

    def _line(self, state) -> str:
        done = state.global_step - self.first_step
        seconds = max(time.perf_counter() - self.began, 1e-9)
        left = round(seconds / max(done, 1) * (state.max_steps - state.global_step))
        parts = [f"step {state.global_step:,}/{state.max_steps:,}"]
        if self.loss is not None:
            parts.append(f"loss {self.loss:.4f}")
        if self.validation_loss is not None:
            parts.append(f"val {self.validation_loss:.4f}{self.gap}")
        if done:
            parts += [f"{done * self.tokens_per_step / seconds:,.0f} tokens/s", f"{left // 60}:{left % 60:02d} left"]
        return " | ".join(parts)


class Samples(TrainerCallback):
    """Continues the same prompt with the same seed before training and at each evaluation.

    Samples are stored in the Trainer's log beside the loss of their evaluation, so that a resumed run has all of them,
    and in `samples.md`. The random state of training is not changed. A sharded model, which no single process can
    run, writes no samples.
    """

    def __init__(self, tokenizer, prompt: str, length: int, seed: int, stream=None):
        self.tokenizer, self.prompt = tokenizer, prompt
        self.length, self.seed = length, seed
        self.stream = stream or sys.stdout

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step == 0 and state.is_world_process_zero:
            state.log_history.append({"step": 0})
            self._add(args, state, model)

    def on_evaluate(self, args, state, control, model=None, **kwargs):
        if state.global_step and state.is_world_process_zero:
            self._add(args, state, model)

    def _add(self, args, state, model):
        if args.fsdp or args.deepspeed:
            return
        text = write_sample(model, self.tokenizer, self.prompt, self.length, self.seed)
        state.log_history[-1]["sample"] = text
        with contextlib.suppress(OSError):  # a full disk is reported by the next checkpoint
            (Path(args.output_dir) / SAMPLES_FILE).write_text(render_samples(state.log_history), encoding="utf-8")
        say(_indented(text), stream=self.stream)


def write_sample(
    model,
    tokenizer,
    prompt: str,
    length: int,
    seed: int,
    eos_token_id: int | None = None,
) -> str:
    """The prompt and `length` tokens that the model generates after it. The global random state is not changed.

    A model that cannot generate past its context writes fewer.

    Args:
        eos_token_id: Generation ends at this token; only for models that were trained to predict it.
    """
    was_training, accelerator = model.training, model.device.type != "cpu"
    ids = torch.tensor([prompt_ids(tokenizer, prompt) or prompt_ids(tokenizer, "\n")], device=model.device)
    if (longest := longest_text(model)) is not None:
        ids = ids[:, 1 - longest :]
        length = min(length, longest - ids.shape[1])
    devices = range(torch.accelerator.device_count()) if accelerator else []
    with torch.random.fork_rng(devices, device_type=model.device.type):
        torch.manual_seed(seed)
        # The Trainer switches the cache off, and sets an end-of-text token that may never have been trained.
        settings = {"max_new_tokens": length, "use_cache": True, "eos_token_id": eos_token_id, **SAMPLING}
        output = model.eval().generate(ids, **settings)
    model.train(was_training)
    return tokenizer.decode(output[0])


def render_samples(log_history: list[dict]) -> str:
    """All samples of a run, as Markdown."""
    parts = ["# Samples\n\nThe same prompt and the same seed, while the model learns.\n"]
    for row in log_history:
        if "sample" in row:
            loss = f", validation loss {row['eval_loss']:.4f}" if "eval_loss" in row else ", untrained"
            parts.append(f"## Step {row['step']:,}{loss}\n\n{_indented(row['sample'])}\n")
    return "\n".join(parts)


def _indented(text: str) -> str:
    """As a code block, without characters that control a terminal."""
    lines = "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text).split("\n")
    return textwrap.indent("\n".join(lines), "    ", lambda line: True)


class DivergenceError(UserError, ArithmeticError):
    """A loss is not finite."""


def check_finite(loss: float, step: int, what: str = "training loss") -> None:
    """Raise `DivergenceError` if a loss is NaN or infinite; the message says what to lower."""
    if not math.isfinite(loss):
        raise DivergenceError(
            f"the {what} is {loss} at step {step:,}: training diverged; lower --learning_rate, --muon_learning_rate or "
            "--max_grad_norm and train in another --output_dir"
        )


class StopOnDivergence(TrainerCallback):
    """End training at the first logged loss that is not finite, before a checkpoint is saved."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        check_finite(logs.get("loss", 0.0), state.global_step)
        check_finite(logs.get("eval_loss", 0.0), state.global_step, "validation loss")


class StopOnSignal(TrainerCallback):
    """Ctrl-C, SIGTERM or SIGHUP ends training after the current step, with a checkpoint; a second Ctrl-C immediately.

    with stop:
        trainer.train()

    A closed terminal sends SIGHUP; it stays ignored under `nohup`. Outside training, what the block does (such as
    saving the model) is finished. With several processes, all stop at
    the same step: the next logging step after one of them received the signal.

    Attributes:
        received: The signal's number, or 0.
    """

    def __init__(self):
        self.received = 0

    def __enter__(self):
        self.received, self._before = 0, {}
        if threading.current_thread() is threading.main_thread():  # no other thread can handle signals
            numbers = [signal.SIGINT, signal.SIGTERM]
            if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # Windows has none
                numbers.append(signal.SIGHUP)
            self._before = {number: signal.signal(number, self._receive) for number in numbers}
        return self

    def __exit__(self, *error):
        for number, handler in self._before.items():
            signal.signal(number, handler)

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
