"""What a person sees while a model trains, a line that moves and samples; and how training ends when it is told to."""

import contextlib
import signal
import sys
import textwrap
import time
from pathlib import Path

import torch
from transformers import TrainerCallback


SAMPLES_FILE = "samples.md"
SAMPLING = {"do_sample": True, "temperature": 0.8, "top_k": 0}  # suits a small model


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


class Samples(TrainerCallback):
    """The same prompt continued from the same seed before training and at each evaluation: noise that turns into verse.

    A text is kept in the Trainer's log beside the loss of its evaluation, so that a resumed run has all of them, and
    in `samples.md`. Training's random numbers are not touched. Sharded models, which no single process can run, write
    none.
    """

    def __init__(self, tokenizer, prompt: str, length: int, seed: int, longest: int | None = None, stream=None):
        self.tokenizer, self.prompt = tokenizer, prompt
        self.settings = {"length": length, "seed": seed, "longest": longest}
        self.stream = stream or sys.stdout

    def on_train_begin(self, args, state, control, model, **kwargs):
        if state.global_step == 0 and state.is_world_process_zero:
            state.log_history.append({"step": 0})
            self._add(args, state, model)

    def on_evaluate(self, args, state, control, model, **kwargs):
        if state.is_world_process_zero:
            self._add(args, state, model)

    def _add(self, args, state, model):
        if args.fsdp or args.deepspeed:
            return
        text = write_sample(model, self.tokenizer, self.prompt, **self.settings)
        state.log_history[-1]["sample"] = text
        with contextlib.suppress(OSError):  # on a full disk, the next checkpoint says so
            (Path(args.output_dir) / SAMPLES_FILE).write_text(render_samples(state.log_history), encoding="utf-8")
        print(_indented(text), file=self.stream, flush=True)


def write_sample(
    model,
    tokenizer,
    prompt: str,
    length: int,
    seed: int,
    longest: int | None = None,
    eos_token_id: int | None = None,
) -> str:
    """The prompt and `length` tokens that the model writes after it; the global random state stays as it was.

    Args:
        longest: Tokens that the model can hold, prompt included, if it does not slide: more are cut off.
        eos_token_id: Where the text ends early, if the model has learnt that.
    """
    was_training, accelerator = model.training, model.device.type != "cpu"
    inputs = tokenizer(prompt or tokenizer.bos_token or "\n", return_tensors="pt", add_special_tokens=False)
    ids = inputs["input_ids"].to(model.device)
    if longest is not None:
        ids = ids[:, 1 - longest :]
        length = min(length, longest - ids.shape[1])
    devices = range(torch.accelerator.device_count()) if accelerator else []
    with torch.random.fork_rng(devices, device_type=model.device.type):
        torch.manual_seed(seed)
        # The Trainer switches the model's cache off, and has it stop at a token that was perhaps never trained.
        settings = {"max_new_tokens": length, "use_cache": True, "eos_token_id": eos_token_id, **SAMPLING}
        output = model.eval().generate(ids, **settings)
    model.train(was_training)
    return tokenizer.decode(output[0])


def render_samples(log_history: list[dict]) -> str:
    """All samples of a run, as a page of Markdown."""
    parts = ["# Samples\n\nThe same prompt and the same seed, while the model learns.\n"]
    for row in log_history:
        if "sample" in row:
            loss = f", validation loss {row['eval_loss']:.4f}" if "eval_loss" in row else ", untrained"
            parts.append(f"## Step {row['step']:,}{loss}\n\n{_indented(row['sample'])}\n")
    return "\n".join(parts)


def _indented(text: str) -> str:
    """As a block of code, without characters that a terminal would obey."""
    lines = "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text).split("\n")
    return textwrap.indent("\n".join(lines), "    ", lambda line: True)


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
