"""Time per training step of this package's model and of transformers' GPT-2 and Qwen3 of the same size, same Trainer.

    python -m benchmarks.train_speed --rounds 5

The models train in turn (A B C A B C ...) in one process on the same windows of tiny Shakespeare; ratios are taken
round by round. The result goes to `benchmarks/results/train_speed.json`.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PrinterCallback,
    Qwen3Config,
    Qwen3ForCausalLM,
    TrainerCallback,
)

from modeling_gptlite import GPTLiteConfig, GPTLiteForCausalLM
from modeling_gptlite.training.data import RandomWindows, load_source
from modeling_gptlite.training.report import describe_environment
from modeling_gptlite.training.trainer import CausalLMTrainer, CausalLMTrainingArguments
from tokenization import build_char_tokenizer, encode_corpus


RESULTS = Path(__file__).parent / "results"
WARM_UP = 20  # steps that are not counted
# nanoGPT's README recipe for a CPU
SIZE = {"vocab_size": 65, "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
CONTEXT, BATCH = 64, 12


def gptlite(preset: str):
    dropout = {"attention_dropout": 0.0, "hidden_dropout": 0.0, "embedding_dropout": 0.0}
    return GPTLiteForCausalLM(GPTLiteConfig.from_preset(preset, **SIZE, **dropout, max_position_embeddings=CONTEXT))


def gpt2():
    names = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}
    size = {names.get(name, name): value for name, value in SIZE.items()}
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2LMHeadModel(
        GPT2Config(**size, **dropout, n_positions=CONTEXT, activation_function="gelu", bos_token_id=0, eos_token_id=0)
    )


def qwen3():
    config = GPTLiteConfig.from_preset("modern-1m", **SIZE)
    return Qwen3ForCausalLM(
        Qwen3Config(
            **SIZE,
            intermediate_size=config.intermediate_size,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            max_position_embeddings=CONTEXT,
        )
    )


MODELS = {
    "gptlite nanogpt": lambda: gptlite("nanogpt-10m"),
    "transformers GPT-2": gpt2,
    "gptlite modern": lambda: gptlite("modern-1m"),
    "transformers Qwen3": qwen3,
}
PAIRS = [("gptlite nanogpt", "transformers GPT-2"), ("gptlite modern", "transformers Qwen3")]


class Clock(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == WARM_UP:
            self.began = time.perf_counter()
        if state.global_step == state.max_steps:
            self.seconds_per_step = (time.perf_counter() - self.began) / (state.max_steps - WARM_UP)


def milliseconds_per_step(build, ids, steps: int) -> float:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        args = CausalLMTrainingArguments(
            folder,
            precision="fp32",
            max_steps=steps + WARM_UP,
            per_device_train_batch_size=BATCH,
            logging_steps=50,
            eval_strategy="no",
            save_strategy="no",
            load_best_model_at_end=False,
        )
        windows = RandomWindows(ids, CONTEXT, args.max_steps * BATCH, seed=0)
        clock = Clock()
        trainer = CausalLMTrainer(build(), args, train_dataset=windows, callbacks=[clock])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return clock.seconds_per_step * 1000


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="how often each model trains")
    parser.add_argument("--steps", type=int, default=200, help="counted steps of each training")
    options = parser.parse_args()

    text = "".join(load_source("tinyshakespeare").pieces())
    ids = encode_corpus(text[: int(len(text) * 0.9)], build_char_tokenizer(text, special_tokens=False))
    times = {name: [] for name in MODELS}
    for number in range(options.rounds):
        for name, build in MODELS.items():
            times[name].append(milliseconds_per_step(build, ids, options.steps))
        print(number + 1, {name: round(values[-1], 1) for name, values in times.items()}, flush=True)

    ratios = {}
    for ours, theirs in PAIRS:
        rounds = [a / b for a, b in zip(times[ours], times[theirs], strict=True)]
        ratios[f"{ours} / {theirs}"] = {
            "median": statistics.median(rounds),
            "min": min(rounds),
            "max": max(rounds),
        }
        print(f"{ours} / {theirs}: {statistics.median(rounds):.3f} ({min(rounds):.3f} to {max(rounds):.3f})")
    RESULTS.mkdir(exist_ok=True)
    record = {
        "what": "milliseconds per training step, fp32, 0.8M parameters, context 64, batch 12",
        "environment": describe_environment(torch.device("cpu")),
        "steps": options.steps,
        "milliseconds_per_step": times,
        "ratios": ratios,
    }
    (RESULTS / "train_speed.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
