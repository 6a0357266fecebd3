"""Fine-tuning a pretrained model: speed and memory beside transformers' Trainer, evaluation, and whole runs.

    python -m benchmarks.pretrained --model ../SmolLM2-135M --texts tinyshakespeare.txt docs.txt --minutes 1 5

`--parts` picks some of: speed, memory, evaluate, runs. Each measurement runs in a new process.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import common


WINDOWS, CONTEXT, STEPS, SKIPPED = 4, 256, 8, 2
SIDES = ("transformers", "gptlite", "gptlite, as it is chosen")
CLASSES = {  # configurations of real models, with random weights
    "llama": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    },
    "gpt2": {},
    "qwen3": {
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_hidden_layers": 16,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "vocab_size": 50000,
        "tie_word_embeddings": True,
    },
    "gpt_neox": {
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "vocab_size": 50304,
    },
}
PREDICTIONS = {"all weights": {}, "LoRA": {"lora": 16}, "computed twice": {"gradient_checkpointing": True}}


# ---- One process ---------------------------------------------------------------------------------------------------


def train(side: str, model, windows: int, context: int, folder: str, **settings) -> list[float]:
    """Seconds of each step of a Trainer on random tokens."""
    import torch
    import transformers
    from transformers import TrainerCallback

    from modeling_gptlite.data.windows import RandomWindows
    from modeling_gptlite.training.hardware import multiplies_bf16
    from modeling_gptlite.training.trainer import CausalLMTrainer, CausalLMTrainingArguments

    class Times(TrainerCallback):
        def __init__(self):
            self.seconds = []

        def on_step_begin(self, *_, **__):
            self.began = time.perf_counter()

        def on_step_end(self, *_, **__):
            self.seconds.append(time.perf_counter() - self.began)

    ids = torch.randint(model.config.vocab_size, (100_000,), generator=torch.Generator().manual_seed(0)).numpy()
    common_settings = {
        "per_device_train_batch_size": windows,
        "max_steps": STEPS,
        "learning_rate": 1e-5,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        **settings,
    }
    times = Times()
    if side == "transformers":
        rows = [{"input_ids": torch.from_numpy(ids[i * context : (i + 1) * context])} for i in range(windows * STEPS)]
        for row in rows:
            row["labels"] = row["input_ids"]
        args = transformers.TrainingArguments(folder, bf16=multiplies_bf16("cpu"), use_cpu=True, **common_settings)
        transformers.Trainer(model, args, train_dataset=rows, callbacks=[times]).train()
    else:
        args = CausalLMTrainingArguments(folder, eval_strategy="no", **common_settings)
        data = RandomWindows(ids, context, windows * STEPS, seed=0)
        CausalLMTrainer(model, args, train_dataset=data, callbacks=[times]).train()
    return times.seconds


def speed(side: str, name: str) -> dict:
    """Tokens per second and peak memory of training at 4 x 256 tokens per step."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(name, dtype="float32")
    if side == SIDES[2]:
        model.get_input_embeddings().weight.requires_grad_(False)
    with tempfile.TemporaryDirectory() as folder:
        seconds = train(side, model, WINDOWS, CONTEXT, folder)
    step = statistics.median(seconds[SKIPPED:])
    return {"tokens_per_second": WINDOWS * CONTEXT / step, "peak_gigabytes": common.peak_megabytes() / 1024}


def memory(kind: str, way: str) -> dict:
    """Gigabytes that training takes, predicted and real."""
    import psutil
    from transformers import AutoConfig, AutoModelForCausalLM

    from modeling_gptlite.runs.model import add_lora
    from modeling_gptlite.training.memory import training_memory
    from modeling_gptlite.training.trainer import CausalLMTrainingArguments

    settings = dict(PREDICTIONS[way])
    lora = settings.pop("lora", None)
    config = AutoConfig.for_model(kind, **CLASSES[kind])
    context = 768
    args = CausalLMTrainingArguments("unused", per_device_train_batch_size=1, **settings)
    predicted = training_memory(config, args, context, lora)
    before = psutil.Process().memory_info().rss
    model = AutoModelForCausalLM.from_config(config)
    model = model if lora is None else add_lora(model, lora)
    with tempfile.TemporaryDirectory() as folder:
        train("gptlite", model, 1, context, folder, **settings)
    real = common.peak_megabytes() * 2**20 - before
    return {"predicted": predicted / 1e9, "real": real / 1e9, "ratio": predicted / real}


def evaluate(side: str, name: str, text: str) -> dict:
    """Tokens per second over the validation split: of `gptlite evaluate`, and of bare forward passes in bf16."""
    import torch

    from modeling_gptlite.data.encode import encode_text
    from modeling_gptlite.data.sources import SourceArguments, open_source
    from modeling_gptlite.evaluation.evaluate import EvaluationSettings, evaluate_predictions
    from modeling_gptlite.loading import load_for_inference
    from modeling_gptlite.training.hardware import inference_precision

    model, tokenizer = load_for_inference(name, dtype="float32")
    split = encode_text(open_source(SourceArguments(train_file=[text])), tokenizer)
    ids = torch.from_numpy(split.validation_ids[: len(split.validation_ids) // CONTEXT * CONTEXT].astype("int64"))
    batches = ids.view(-1, CONTEXT).split(4096 // CONTEXT)
    began = time.perf_counter()
    if side == "bare":
        is_half = inference_precision(model) == "bf16"
        with torch.inference_mode(), torch.autocast(model.device.type, torch.bfloat16, enabled=is_half):
            for batch in batches:
                model(batch, use_cache=False, logits_to_keep=1)
                hidden = torch.zeros(batch.numel(), model.config.hidden_size)
                for chunk in hidden.split(341):  # the head's product, without holding all logits
                    model.get_output_embeddings()(chunk)
    else:
        evaluate_predictions(model, split, EvaluationSettings(context_length=CONTEXT))
    return {"tokens_per_second": len(ids) / (time.perf_counter() - began)}


# ---- Whole runs ----------------------------------------------------------------------------------------------------


def run(minutes: float, text: str, model: str | None) -> dict:
    """`gptlite train` with nothing but a text and the minutes: its result, wall time and peak memory."""
    base = [] if model is None else [f"--model_name_or_path={model}"]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "scripts.train", f"--train_file={text}", f"--minutes={minutes:g}", *base]
        began = time.perf_counter()
        watched = ["/usr/bin/env", "python3", "-c", _WATCH, *command, f"--output_dir={folder}/run"]
        done = subprocess.run(watched, cwd=common.ROOT, capture_output=True, text=True)
        seconds = time.perf_counter() - began
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
        results = json.loads((Path(folder) / "run" / "run.json").read_text())["results"]
    peak = re.findall(r"peak kilobytes (\d+)", done.stderr)
    return {
        "bits_per_character": results["bits_per_character"],
        "before": results.get("bits_per_character_before"),
        "steps": results["steps"],
        "seconds": seconds,
        "peak_gigabytes": int(peak[-1]) / 2**20,
    }


_WATCH = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:])
print("peak kilobytes", resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
sys.exit(code)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a Llama, SmolLM2-135M for example")
    parser.add_argument("--texts", nargs="+", default=[], help="text files")
    parser.add_argument("--minutes", nargs="+", type=float, default=[1.0, 5.0])
    parser.add_argument("--roads", nargs="+", default=["pretrained", "scratch"], help="how the runs begin")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--parts", nargs="+", default=["speed", "memory", "evaluate", "runs"])
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        part, *rest = args.worker
        result = {"speed": speed, "memory": memory, "evaluate": evaluate}[part](*rest)
        print(json.dumps(result))
        return

    def worker(*arguments: str) -> dict:
        return common.in_a_process("benchmarks.pretrained", f"--model={args.model}", "--worker", *arguments)

    name = f"pretrained-{common.cpu_kind()}"
    fields = {key: value for key, value in common.recorded(name).items() if key not in ("what", "environment")}
    if "speed" in args.parts:
        measures = {side: lambda side=side: worker("speed", side, args.model) for side in SIDES}
        results = common.measure_in_turn(measures, args.rounds)
        pairs = [(side, SIDES[0]) for side in SIDES[1:]]
        found = {figure: common.ratios(results, figure, pairs) for figure in ("tokens_per_second", "peak_gigabytes")}
        fields["speed"] = {"results": results, "ratios": found}
    if "memory" in args.parts:
        fields["memory"] = {f"{kind}, {way}": worker("memory", kind, way) for kind in CLASSES for way in PREDICTIONS}
        for what, row in fields["memory"].items():
            print(f"{what}: predicted {row['predicted']:.2f} GB, real {row['real']:.2f} GB, ratio {row['ratio']:.2f}")
    if "evaluate" in args.parts:
        sides = {
            side: lambda side=side: worker("evaluate", side, args.model, args.texts[0]) for side in ("gptlite", "bare")
        }
        results = common.measure_in_turn(sides, args.rounds)
        fields["evaluate"] = {
            "results": results,
            "ratios": common.ratios(results, "tokens_per_second", [("gptlite", "bare")]),
        }
    if "runs" in args.parts:
        runs = fields.setdefault("runs", {})
        for text in args.texts:
            for minutes in args.minutes:
                for road in args.roads:
                    key = f"{Path(text).stem}, {minutes:g} minutes, {road}"
                    runs[key] = run(minutes, text, args.model if road == "pretrained" else None)
                    print(key, json.dumps(runs[key]), flush=True)
                    common.record(name, __doc__.splitlines()[0], **fields)
    common.record(name, __doc__.splitlines()[0], **fields)


if __name__ == "__main__":
    main()
