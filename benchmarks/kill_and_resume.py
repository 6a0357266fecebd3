"""Kill a training at random moments and go on with the same command, until it is done: are its weights the same?

    python -m benchmarks.kill_and_resume --kills 20

A run of each optimizer, with and without gradient accumulation, fp32, with dropout. SIGKILL comes from another process:
in a step, in an evaluation, or while a checkpoint is written, in turn, the moment drawn at random. The weights' sha256
must be that of the run that nobody disturbed. The result goes to `benchmarks/results/kill_and_resume.json`.
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

import torch

from modeling_gptlite.training.report import describe_environment


RESULTS = Path(__file__).parent / "results"
PHASES = ("step", "evaluation", "checkpoint")
STEPS, SAVE_STEPS = 120, 15
MODEL = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "max_position_embeddings": 64,
    **dict.fromkeys(("attention_dropout", "hidden_dropout", "embedding_dropout"), 0.1),
}
# Trains as the command does, and says on a pipe what it is about to do.
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
        "--precision=fp32",
        "--per_device_train_batch_size=4",
        f"--max_steps={STEPS}",
        f"--eval_steps={SAVE_STEPS}",
        f"--save_steps={SAVE_STEPS}",
        "--validation_fraction=0.02",
        "--sample_length=0",
    ]


def attempt(flags: list[str], phase: str | None, draw: random.Random) -> dict | None:
    """One start of the command, killed in `phase`; None if it came to its end."""
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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="over all runs together")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of death")
    options = parser.parse_args()

    draw, rows = random.Random(options.seed), []
    variants = [(optimizer, accumulation) for optimizer in ("adamw", "muon") for accumulation in (1, 2)]
    for number, (optimizer, accumulation) in enumerate(variants):
        with tempfile.TemporaryDirectory() as folder:
            digests, kills = {}, []
            for name in ("undisturbed", "killed"):
                flags = command(Path(folder) / name, optimizer, accumulation)
                wanted = options.kills * (number + 1) // len(variants) - options.kills * number // len(variants)
                while name == "killed" and len(kills) < wanted:
                    death = attempt(flags, PHASES[len(kills) % len(PHASES)], draw)
                    if death is None:
                        break  # it was done before the moment came
                    kills.append(death)
                if not (Path(folder) / name / "run.json").exists():
                    attempt(flags, None, draw)
                weights = (Path(folder) / name / "model.safetensors").read_bytes()
                digests[name] = hashlib.sha256(weights).hexdigest()
            same = digests["undisturbed"] == digests["killed"]
            rows.append(
                {
                    "optimizer": optimizer,
                    "gradient_accumulation_steps": accumulation,
                    "kills": kills,
                    "sha256": digests,
                    "bit_identical": same,
                }
            )
            print(f"{optimizer}, accumulation {accumulation}: {len(kills)} kills, bit-identical: {same}", flush=True)
    record = {
        "what": f"weights after {STEPS} steps in fp32 with dropout: killed and resumed, against undisturbed",
        "environment": describe_environment(torch.device("cpu")),
        "kills": sum(len(row["kills"]) for row in rows),
        "runs": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "kill_and_resume.json").write_text(json.dumps(record, indent=2) + "\n")
    raise SystemExit(not all(row["bit_identical"] for row in rows))


if __name__ == "__main__":
    main()
