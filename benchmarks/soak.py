"""Memory during a long training run: 100,000 steps of a toy model with evaluations and checkpoints. It must stay flat.

    python -m benchmarks.soak

Resident memory is recorded every 1,000 steps. The result is written to `benchmarks/results/soak.json`.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import torch
from transformers import PrinterCallback, TrainerCallback

from modeling_gptlite import GPTLiteConfig, GPTLiteForCausalLM
from modeling_gptlite.data.sources import SourceArguments, open_source
from modeling_gptlite.data.windows import EvaluationWindows, RandomWindows
from modeling_gptlite.runs.record import describe_environment
from modeling_gptlite.training.trainer import CausalLMTrainer, CausalLMTrainingArguments
from tokenization import build_char_tokenizer, encode_corpus


RESULTS = Path(__file__).parent / "results"
CONTEXT, BATCH = 16, 2
ALLOWED_MB = 16  # growth after the first tenth of the run


class Memory(TrainerCallback):
    """Records `(step, resident MB)`."""

    def __init__(self, every: int):
        self.every, self.readings = every, []

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.every == 0:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.readings.append((state.global_step, round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100_000)
    steps = parser.parse_args().steps

    text = "".join(open_source(SourceArguments(dataset="python-docs")).texts())
    tokenizer = build_char_tokenizer(text)
    ids = encode_corpus(text, tokenizer)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "max_position_embeddings": CONTEXT}
    config = GPTLiteConfig.from_preset("modern-1m", **size, vocab_size=len(tokenizer), hidden_dropout=0.1)
    memory = Memory(max(1, steps // 100))
    began = time.time()
    with tempfile.TemporaryDirectory() as folder:
        args = CausalLMTrainingArguments(
            folder,
            optimizer="muon",
            precision="fp32",
            max_steps=steps,
            per_device_train_batch_size=BATCH,
            eval_steps=max(1, steps // 20),
            save_steps=max(1, steps // 20),
            logging_steps=max(1, steps // 100),
        )
        trainer = CausalLMTrainer(
            GPTLiteForCausalLM(config),
            args,
            train_dataset=RandomWindows(ids[2000:], CONTEXT, steps * BATCH, seed=0),
            eval_dataset=EvaluationWindows(ids[:2000], CONTEXT),
            processing_class=tokenizer,
            callbacks=[memory],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    settled = [megabytes for step, megabytes in memory.readings if step >= steps // 10]
    growth = round(settled[-1] - settled[0], 1)
    record = {
        "what": "resident memory in MB during a run with 20 evaluations and 20 checkpoints",
        "environment": describe_environment(torch.device("cpu")),
        "steps": steps,
        "seconds": round(time.time() - began),
        "growth_mb_after_first_tenth": growth,
        "allowed_mb": ALLOWED_MB,
        "step_and_mb": memory.readings,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "soak.json").write_text(json.dumps(record, indent=2) + "\n")
    print(f"{steps:,} steps: {settled[0]} MB after a tenth, {settled[-1]} MB at the end, at most {max(settled)} MB")
    raise SystemExit(growth > ALLOWED_MB)


if __name__ == "__main__":
    main()
