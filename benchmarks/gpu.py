"""What only a GPU can show, in seven parts; each is one command of less than nine minutes and leaves its own record.

    python -m benchmarks.gpu paths       # every code path that a GPU takes: does it run, with the same loss?
    python -m benchmarks.gpu classic     # shakespeare_char_classic.yaml: 5,000 iterations, loss and minutes
    python -m benchmarks.gpu best        # shakespeare_char.yaml over three seeds, and nanoGPT's own training
    python -m benchmarks.gpu speed       # 124M parameters: tokens per second, model-FLOPs utilisation, memory
    python -m benchmarks.gpu resume      # killed and resumed: bit-equal, or how far apart
    python -m benchmarks.gpu generate    # tokens per second of generate(), 1 and 64 texts, plain and compiled
    python -m benchmarks.gpu parallel    # DDP, FSDP2, DeepSpeed and tensor parallelism on one device
    python -m benchmarks.gpu all --toy   # the same code at toy size, on any machine

`--nanogpt ../nanoGPT` adds nanoGPT to the comparisons; prepare the data in that checkout first
(`python data/shakespeare_char/prepare.py`). A record is `benchmarks/results/gpu_PART.json`. It is written again after
each measurement, so a part that fails or is stopped leaves what it has measured; a measurement that fails is recorded
as its error.
"""

import argparse
import functools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks import common, gpu_speed, kill_and_resume, time_to_loss


TARGET_LOSS = 1.4697  # nanoGPT's best on this text, three minutes on an A100
TOY_MODEL = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 32,
}
TOY_RUN = [
    "--max_steps=4",
    "--eval_steps=2",
    "--save_steps=2",
    "--per_device_train_batch_size=2",
    "--sample_length=5",
    f"--model_overrides={json.dumps(TOY_MODEL)}",
]
NANOGPT_ON_A_GPU = "config/train_shakespeare_char.py"
NANOGPT_TOY = """config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=2 --eval_interval=2
    --max_iters=4 --batch_size=2 --block_size=32 --n_layer=1 --n_head=2 --n_embd=32"""
# A short run of the training command for each code path that depends on the device
PATHS = {
    "adamw, fp32": ["--optimizer=adamw", "--precision=fp32"],
    "adamw, bf16": ["--optimizer=adamw", "--precision=bf16"],
    "adamw, fp16": ["--optimizer=adamw", "--precision=fp16"],
    "muon, fp32": ["--optimizer=muon", "--precision=fp32"],
    "muon, bf16": ["--optimizer=muon", "--precision=bf16"],
    "muon, bf16, compiled": ["--optimizer=muon", "--precision=bf16", "--torch_compile=true"],
    "muon, bf16, gradient checkpointing": ["--optimizer=muon", "--precision=bf16", "--gradient_checkpointing=true"],
    "muon, bf16, two workers": ["--optimizer=muon", "--precision=bf16", "--dataloader_num_workers=2"],
    "muon, bf16, accumulation": ["--optimizer=muon", "--precision=bf16", "--gradient_accumulation_steps=2"],
    "transformers' optimizer": ["--optimizer=trainer", "--precision=bf16"],
}
ENGINES = {"one process": [], "DDP": ["ddp"], "FSDP2": ["fsdp2"], "DeepSpeed": ["deepspeed"]}  # configuration files


class MeasurementError(Exception):
    """A measurement did not succeed; the message is the last line that it printed."""


def train(flags: list[str], engine: str = "one process") -> dict:
    """Run the training command under an engine and return its `run.json`, and the seconds of the process."""
    launcher = []
    for file in ENGINES[engine]:
        launcher += ["-m", "accelerate.commands.launch", f"--config_file=recipes/accelerate/{file}.yaml"]
        launcher += ["--num_processes=1"]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, *launcher, "-m", "scripts.train", *flags, f"--output_dir={folder}/model"]
        began = time.perf_counter()
        done = subprocess.run(command, cwd=common.ROOT, capture_output=True, text=True)
        seconds = time.perf_counter() - began
        if done.returncode:
            lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
            errors = [line for line in lines if "rror" in line]
            raise MeasurementError(f"exit code {done.returncode}: {(errors or lines or [''])[-1]}")
        record = json.loads(Path(folder, "model", "run.json").read_text(encoding="utf-8"))
    return {**record, "process_seconds": seconds}


def paths(options) -> Iterator[tuple[str, dict]]:
    """Ten steps of training for each code path, and each attention implementation: the loss, and what fails."""
    size = TOY_RUN if options.toy else ["--max_steps=30", "--eval_steps=30", "--save_steps=30", "--sample_length=5"]
    preset = ["--preset=modern-1m", *options.data]
    for name, flags in PATHS.items():
        yield name, attempt(lambda flags=flags: train_figures(train([*preset, *size, *flags])))
    for name in ("eager", "sdpa", "flex_attention", "flash_attention_2"):
        measure = functools.partial(options.part, "attention", name)
        yield f"attention: {name}", attempt(measure)


def train_figures(run: dict) -> dict:
    results = run["results"]
    return {
        "validation_loss": results["loss"],
        "training_seconds": results["train_seconds"],
        "process_seconds": run["process_seconds"],
        "hardware": run["environment"]["hardware"],
    }


def classic(options) -> Iterator[tuple[str, dict]]:
    """The ancestor's recipe, to its end."""
    yield "shakespeare_char_classic", attempt(lambda: recipe("shakespeare_char_classic", 1337, options))


def best(options) -> Iterator[tuple[str, dict]]:
    """The recipe for a GPU with each seed, in turn with nanoGPT's configuration for a GPU."""
    for seed in options.seeds:
        yield f"shakespeare_char, seed {seed}", attempt(lambda seed=seed: recipe("shakespeare_char", seed, options))
        if options.nanogpt and seed == options.seeds[0]:
            flags = NANOGPT_TOY if options.toy else NANOGPT_ON_A_GPU
            yield "nanoGPT", attempt(lambda flags=flags: time_to_loss.run_nanogpt(options.nanogpt, flags))


def recipe(name: str, seed: int, options) -> dict:
    """Best validation loss, and the seconds of training until the loss was nanoGPT's, by the share of the steps."""
    run = train([f"--config=recipes/{name}.yaml", f"--seed={seed}", *options.data, *(TOY_RUN if options.toy else [])])
    results = run["results"]
    reached = [row["step"] for row in run["log_history"] if row.get("eval_loss", TARGET_LOSS + 1) <= TARGET_LOSS]
    to_target = results["train_seconds"] * reached[0] / results["steps"] if reached else None
    return {
        **train_figures(run),
        f"training_seconds_to_{TARGET_LOSS}": to_target,
        "steps": results["steps"],
        "parameters": run["parameters"],
    }


def speed(options) -> Iterator[tuple[str, dict]]:
    """Training of 124M parameters, measured in turn."""
    for number in range(options.rounds):
        for name in gpu_speed.models(options.nanogpt):
            yield f"{name}, round {number + 1}", attempt(functools.partial(options.part, "train", name))


def generate(options) -> Iterator[tuple[str, dict]]:
    """`generate()` with 10.7M parameters in bf16, measured in turn; compiled means a static cache."""
    ways = [(name, way) for name in gpu_speed.models("") for way in ("plain", "compiled")]
    ways += [("nanoGPT", "plain")] if options.nanogpt else []
    for number in range(options.rounds):
        for texts in (1, 2 if options.toy else 64):
            for name, way in ways:
                measure = functools.partial(options.part, "generate", name, way, str(texts))
                yield f"{name}, {way}, {texts} texts, round {number + 1}", attempt(measure)


def resume(options) -> Iterator[tuple[str, dict]]:
    """SIGKILL at random moments, then the same command, against a run without interruption."""
    draw = random.Random(0)
    for extra in ([], ["--full_determinism=true"]):
        for precision in ("fp32", "bf16"):
            for optimizer in ("adamw", "muon"):
                flags = [f"--precision={precision}", *extra]
                measure = functools.partial(kill_and_resume.compare, optimizer, 1, 1 if options.toy else 3, draw, flags)
                yield ", ".join([optimizer, *flags]), attempt(measure)


def parallel(options) -> Iterator[tuple[str, dict]]:
    """The same short run under each engine, and logits under a tensor-parallel plan."""
    size = TOY_RUN if options.toy else ["--max_steps=30", "--eval_steps=30", "--save_steps=30", "--sample_length=5"]
    for name in ENGINES:
        flags = ["--preset=modern-1m", *options.data, *size]
        flags += ["--optimizer=trainer"] if name == "DeepSpeed" else []
        yield name, attempt(lambda flags=flags, name=name: train_figures(train(flags, name)))
    yield "tensor parallelism", attempt(functools.partial(options.part, "tensor_parallel", "gptlite modern"))


PARTS: dict[str, Callable[..., Iterator[tuple[str, dict]]]] = {
    "paths": paths,
    "classic": classic,
    "best": best,
    "speed": speed,
    "resume": resume,
    "generate": generate,
    "parallel": parallel,
}


def attempt(measure: Callable[[], dict]) -> dict:
    """The figures of `measure`, or the last line of its error, so that the measurements after it still take place."""
    try:
        return measure()
    except (Exception, SystemExit) as error:  # a benchmark's child process fails in ways that nobody can list
        return {"error": (str(error).strip() or type(error).__name__).splitlines()[-1]}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=[*PARTS, "all"], help="which parts to run", metavar="PART")
    parser.add_argument("--toy", action="store_true", help="toy sizes, on whatever device there is")
    parser.add_argument("--nanogpt", default="", help="folder of a checkout of nanoGPT")
    parser.add_argument("--dataset", default="tinyshakespeare", help="text to train on")
    parser.add_argument("--rounds", type=int, default=2, help="how often each speed is measured")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="seeds of the part `best`")
    parser.add_argument("--results", help="folder of the records (default: benchmarks/results, with --toy out/gpu_toy)")
    options = parser.parse_args(argv)
    if not torch.cuda.is_available() and not options.toy:
        parser.error("there is no CUDA device; --toy runs the same code at toy size")
    options.data = [f"--dataset={options.dataset}"]
    options.part = functools.partial(
        common.in_a_process,
        "benchmarks.gpu_speed",
        "--toy" if options.toy else "--no-toy",
        f"--nanogpt={options.nanogpt}",
    )
    folder = Path(options.results or (common.ROOT / "out" / "gpu_toy" if options.toy else common.RESULTS))

    for part in PARTS if "all" in options.parts else options.parts:
        results = {}
        for name, figures in PARTS[part](options):
            results[name] = figures
            print(f"{part}  {name}: {json.dumps(figures)}", flush=True)
            common.record(f"gpu_{part}", PARTS[part].__doc__, folder, toy=options.toy, results=results)


if __name__ == "__main__":
    os.chdir(common.ROOT)
    main()
