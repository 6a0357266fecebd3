"""Kill a training run at random moments and resume it until it is finished: are its weights unchanged?

    python -m benchmarks.kill_and_resume --kills 20

One run per optimizer, with and without gradient accumulation, with dropout. Another process sends SIGKILL at a
random moment, alternately during a training step, an evaluation, and the writing of a checkpoint. The sha256 of the
weights must equal that of a run without interruption. The result is written to
`benchmarks/results/kill_and_resume.json` (in fp32; with `--precision bf16` to `kill_and_resume_bf16.json`).
"""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from safetensors.torch import load_file

from benchmarks import common


PHASES = ("step", "evaluation", "checkpoint")
STEPS, SAVE_STEPS = 120, 15
MODEL = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "max_position_embeddings": 64,
    **dict.fromkeys(("attention_dropout", "hidden_dropout", "embedding_dropout"), 0.1),
}
# The training command, which also reports on a pipe what it is about to do.
CHILD = """
import os, sys
from modeling_gptlite.training import trainer
from modeling_gptlite.training.trainer import CausalLMTrainer
from scripts import train

def announced(method, phase):
    def wrapper(self, *args, **kwargs):
        os.write(PIPE, f"{phase} {self.state.global_step}\\n".encode())
        return method(self, *args, **kwargs)
    return wrapper

PIPE = int(sys.argv.pop(1))
names = {"training_step": "step", "evaluation_loop": "evaluation", "_save_checkpoint": "checkpoint"}
for name, phase in names.items():
    setattr(CausalLMTrainer, name, announced(getattr(CausalLMTrainer, name), phase))
train.main()
"""


def command(folder: Path, optimizer: str, accumulation: int) -> list[str]:
    return [
        "--dataset=python-docs",
        f"--output_dir={folder}",
        f"--model_overrides={json.dumps(MODEL)}",
        f"--optimizer={optimizer}",
        f"--gradient_accumulation_steps={accumulation}",
        "--per_device_train_batch_size=4",
        f"--max_steps={STEPS}",
        f"--eval_steps={SAVE_STEPS}",
        f"--save_steps={SAVE_STEPS}",
        "--validation_fraction=0.02",
        "--sample_length=0",
    ]


def attempt(flags: list[str], phase: str | None, draw: random.Random) -> dict | None:
    """Start the command and kill it in `phase`. Returns the kill, or None if the run ended before."""
    reader, writer = os.pipe()
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(writer), *flags], pass_fds=[writer], stdout=subprocess.DEVNULL
    )
    os.close(writer)
    moment, seen, killed = draw.randint(1, 40 if phase == "step" else 2), 0, None
    with os.fdopen(reader) as pipe:
        for line in pipe:
            now, step = line.split()
            seen += now == phase
            if now == phase and seen == moment and killed is None:
                delay = draw.uniform(0, 0.004 if phase == "step" else 0.03)
                time.sleep(delay)
                child.send_signal(signal.SIGKILL)
                killed = {"phase": phase, "step": int(step), "milliseconds_into_it": round(delay * 1000, 1)}
    code = child.wait()
    if code == -signal.SIGKILL:
        return killed
    if code:
        raise SystemExit(f"the training failed with exit code {code}")
    return None


def compare(optimizer: str, accumulation: int, kills: int, draw: random.Random, extra: list[str]) -> dict:
    """One run killed `kills` times and one without interruption, both with the flags `extra`: are the weights equal?"""
    with tempfile.TemporaryDirectory() as folder:
        killed: list[dict] = []
        for name in ("undisturbed", "killed"):
            flags = [*command(Path(folder) / name, optimizer, accumulation), *extra]
            while name == "killed" and len(killed) < kills:
                kill = attempt(flags, PHASES[len(killed) % len(PHASES)], draw)
                if kill is None:
                    break  # the run finished first
                killed.append(kill)
            if not (Path(folder) / name / "run.json").exists():
                attempt(flags, None, draw)
        files = {name: Path(folder) / name / "model.safetensors" for name in ("undisturbed", "killed")}
        digests = {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()}
        weights = {name: load_file(file) for name, file in files.items()}
    differences = [(weights["killed"][name] - value).abs().max() for name, value in weights["undisturbed"].items()]
    return {
        "optimizer": optimizer,
        "gradient_accumulation_steps": accumulation,
        "flags": extra,
        "kills": killed,
        "sha256": digests,
        "bit_identical": digests["undisturbed"] == digests["killed"],
        "largest_difference": max(differences).item(),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="kills over all runs")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="precision of the runs")
    options = parser.parse_args()

    draw, rows = random.Random(options.seed), []
    variants = [(optimizer, accumulation) for optimizer in ("adamw", "muon") for accumulation in (1, 2)]
    for number, (optimizer, accumulation) in enumerate(variants):
        kills = options.kills * (number + 1) // len(variants) - options.kills * number // len(variants)
        row = compare(optimizer, accumulation, kills, draw, [f"--precision={options.precision}"])
        rows.append(row)
        done, same = len(row["kills"]), row["bit_identical"]
        print(f"{optimizer}, accumulation {accumulation}: {done} kills, bit-identical: {same}", flush=True)
    common.record(
        "kill_and_resume" if options.precision == "fp32" else f"kill_and_resume_{options.precision}",
        f"weights after {STEPS} steps in {options.precision} with dropout: killed and resumed, and uninterrupted",
        kills=sum(len(row["kills"]) for row in rows),
        runs=rows,
    )
    raise SystemExit(not all(row["bit_identical"] for row in rows))


if __name__ == "__main__":
    main()
