"""Tokens per second and peak memory of training, compared with transformers' GPT-2 and Qwen3 and with nanoGPT.

    python -m benchmarks.train_speed --nanogpt ../nanoGPT

Two sizes on tiny Shakespeare: nanoGPT's CPU example (0.8M parameters, context 64, batch size 12) and its 10.7M model
(context 256, here with batch size 8). "fp32" uses the same precision for all; "auto" is what this package chooses for
the hardware. transformers' models are trained by the same `CausalLMTrainer` in fp32, and GPT-2 also by transformers'
`Trainer` with its default settings. nanoGPT is trained by the loop of its `train.py` without evaluation and logging.
"""

import argparse
import json
import tempfile
import time

import torch

from benchmarks import common


WARM_UP = 5  # steps before the measurement
SIZES = {
    "cpu": {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "context": 64, "batch": 12},
    "10m": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6, "context": 256, "batch": 8},
}
STEPS = {"cpu": 100, "10m": 6}
OURS = ["gptlite nanogpt fp32", "gptlite nanogpt auto", "gptlite modern fp32", "gptlite modern auto"]
THEIRS = ["GPT-2, same Trainer", "GPT-2, transformers' Trainer", "Qwen3, same Trainer"]


def build(name: str, size: dict):
    """A model of this size, without dropout."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from modeling_gptlite import GPTLiteConfig, GPTLiteForCausalLM
    from modeling_gptlite.interchange import to_native

    shape = {name: size[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
    if name.startswith("GPT-2"):
        dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        names = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}
        shape = {names[name]: value for name, value in shape.items()}
        config = GPT2Config(vocab_size=65, n_positions=size["context"], activation_function="gelu", **shape, **dropout)
        config.bos_token_id = config.eos_token_id = 0
        return GPT2LMHeadModel(config)
    preset = "nanogpt-10m" if "nanogpt" in name else "modern-10m"
    dropout = {"attention_dropout": 0.0, "hidden_dropout": 0.0, "embedding_dropout": 0.0}
    shape["intermediate_size"] = (4 if "nanogpt" in name else 8 / 3) * size["hidden_size"] // 8 * 8
    shape |= {"head_dim": None, "num_key_value_heads": None, "max_position_embeddings": size["context"]}
    shape["intermediate_size"] = int(shape["intermediate_size"])
    model = GPTLiteForCausalLM(GPTLiteConfig.from_preset(preset, vocab_size=65, **shape, **dropout))
    return to_native(model) if name.startswith("Qwen3") else model


def trainer_seconds(name: str, size: dict, steps: int, ids) -> float:
    """Seconds per step of a Trainer."""
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    from modeling_gptlite.data.windows import RandomWindows, whole_batch
    from modeling_gptlite.training.trainer import CausalLMTrainer, CausalLMTrainingArguments

    class Clock(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == WARM_UP:
                self.began = time.perf_counter()
            if state.global_step == state.max_steps:
                self.seconds = (time.perf_counter() - self.began) / (state.max_steps - WARM_UP)

    common_settings = {
        "max_steps": steps + WARM_UP,
        "per_device_train_batch_size": size["batch"],
        "logging_steps": 50,
        "eval_strategy": "no",
        "save_strategy": "no",
        "disable_tqdm": True,
        "report_to": "none",
    }
    windows = RandomWindows(ids, size["context"], (steps + WARM_UP) * size["batch"], seed=0)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        if name.endswith("transformers' Trainer"):
            args = TrainingArguments(folder, **common_settings, remove_unused_columns=False, use_cpu=True)
            trainer = Trainer(
                build(name, size), args, train_dataset=windows, data_collator=whole_batch, callbacks=[clock]
            )
        else:
            args = CausalLMTrainingArguments(
                folder,
                **common_settings,
                precision="auto" if name.endswith("auto") else "fp32",
                load_best_model_at_end=False,
            )
            trainer = CausalLMTrainer(build(name, size), args, train_dataset=windows, callbacks=[clock])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return clock.seconds


def nanogpt_seconds(folder: str, size: dict, steps: int, ids) -> float:
    """Seconds per step of the loop of nanoGPT's `train.py`: batch, forward, backward, clip, step."""
    module = common.load_nanogpt(folder)
    context, batch = size["context"], size["batch"]
    config = module.GPTConfig(
        block_size=context,
        vocab_size=65,
        n_layer=size["num_hidden_layers"],
        n_head=size["num_attention_heads"],
        n_embd=size["hidden_size"],
        dropout=0.0,
        bias=False,
    )
    model = module.GPT(config)
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), "cpu")
    for step in range(WARM_UP + steps):
        if step == WARM_UP:
            began = time.perf_counter()
        starts = torch.randint(len(ids) - context, (batch,)).tolist()
        inputs = torch.stack([torch.from_numpy(ids[i : i + context].astype("int64")) for i in starts])
        targets = torch.stack([torch.from_numpy(ids[i + 1 : i + 1 + context].astype("int64")) for i in starts])
        _, loss = model(inputs, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return (time.perf_counter() - began) / steps


def measure(name: str, size_name: str, steps: int, nanogpt: str) -> dict:
    torch.manual_seed(0)
    size = SIZES[size_name]
    ids, _ = common.corpus_ids()
    if name == "nanoGPT":
        seconds = nanogpt_seconds(nanogpt, size, steps, ids)
    else:
        seconds = trainer_seconds(name, size, steps, ids)
    return {"tokens_per_second": size["context"] * size["batch"] / seconds, "peak_megabytes": common.peak_megabytes()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4, help="rounds")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES), help="sizes to measure")
    parser.add_argument("--steps", type=int, help="measured steps")
    parser.add_argument("--nanogpt", default="", help="folder of a checkout of nanoGPT")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.sizes[0], options.steps, options.nanogpt)))
        return

    theirs = [*THEIRS, *(["nanoGPT"] if options.nanogpt else [])]
    fields = {}
    for size in options.sizes:
        print(f"--- {size}")

        def measured(name, size=size):
            arguments = ["--one", name, f"--sizes={size}", f"--steps={options.steps or STEPS[size]}"]
            return lambda: common.in_a_process("benchmarks.train_speed", *arguments, f"--nanogpt={options.nanogpt}")

        results = common.measure_in_turn({name: measured(name) for name in OURS + theirs}, options.rounds)
        pairs = [(our, their) for our in OURS for their in theirs]
        fields[f"size_{size}"] = {
            **SIZES[size],
            "results": results,
            "ratios": common.ratios(results, "tokens_per_second", pairs),
            "memory_ratios": common.ratios(results, "peak_megabytes", pairs),
        }
    common.record(
        f"train_speed-{common.cpu_kind()}", "tokens per second and peak resident memory of training", **fields
    )


if __name__ == "__main__":
    main()
