"""What only a GPU can show, measured by one command in eight minutes.

    python -m benchmarks.gpu --minutes 8 --nanogpt ../nanoGPT   # on a machine with one GPU
    python -m benchmarks.gpu --toy                              # the same code at toy size, without a GPU

| part     | seconds | what                                                                                   |
|----------|---------|----------------------------------------------------------------------------------------|
| paths    | 60      | precision x optimizer x compiled x attention, 5 steps each: runs, with the same loss    |
| best     | 150     | `shakespeare_char` next to nanoGPT's own 5,000 iterations: losses and times            |
| classic  | 60      | the 5,000 iterations of `shakespeare_char_classic`                                     |
| speed    | 90      | training of 124M parameters next to transformers' GPT-2 and nanoGPT, in turn           |
| resume   | 40      | broken off in mid-run and resumed: are the weights bit-equal?                          |
| generate | 40      | 1 and 64 texts, plain and compiled, next to transformers' GPT-2 and nanoGPT            |
| parallel | 20      | FSDP2, DeepSpeed and DDP on the one device                                             |

Each part is a process with a time limit: its share of `--minutes`, and what the parts before it left over. A process
that dies is started again at the measurement after the one that killed it. Each measurement is written to
`RESULTS/gpu_PART.json` when it is made, an error with the end of its traceback; what broke is listed last.

To plan a call on a borrowed card: run `--toy` first. Bring tinyshakespeare.txt (`GPTLITE_DATA` names its folder) and a
clone of nanoGPT, whose data is prepared here; neither a network nor `datasets` is needed. `--minutes 8` ends within
nine minutes. If minutes are left, `--parts best --minutes 3` without `--nanogpt` completes the three seeds, each
trained in another way. Then copy the records into `benchmarks/results` and run `python -m benchmarks.table`.
"""

import argparse
import contextlib
import functools
import itertools
import json
import math
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from benchmarks import common, time_to_loss
from benchmarks.kill_and_resume import MODEL as MODEL_WITH_DROPOUT


Measures = Iterator[tuple[str, Callable[[], dict]]]

TARGET_LOSS = 1.4697  # nanoGPT's best on this text, three minutes on an A100
TOLERANCE = {"fp32": 0.01, "bf16": 0.05, "fp16": 0.05}  # of the fifth loss, which is about 3
# Dense bf16 FLOPs per second that the maker states
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "4090": 165e12, "T4": 65e12}
SAVING_SECONDS = 10  # left of a part's time when a long run is ended
NO_DROPOUT = dict.fromkeys(("attention_dropout", "hidden_dropout", "embedding_dropout"), 0.0)
TOY_MODEL = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": None,
    "head_dim": None,
    "intermediate_size": 64,
    "max_position_embeddings": 32,
}
SHORT_RUN = {"max_steps": 4, "eval_steps": 2, "save_steps": 2, "per_device_train_batch_size": 2, "sample_length": 5}
NANOGPT_ON_A_GPU = "config/train_shakespeare_char.py"
NANOGPT_TOY = """config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=2 --eval_interval=2
    --max_iters=4 --batch_size=2 --block_size=32 --n_layer=1 --n_head=2 --n_embd=32"""

now = time.perf_counter


# ---- Training ------------------------------------------------------------------------------------------------------


def prepared(options, folder: str, recipe: str | None = None, **settings):
    """A run of this package on the text of this benchmark."""
    from modeling_gptlite.runs.train import start_from

    if options.toy:
        overrides = {**TOY_MODEL, **settings.pop("model_overrides", {})}
        settings = {**SHORT_RUN, "model_overrides": overrides, **settings}
        if settings.get("torch_compile"):
            settings["torch_compile_backend"] = "cudagraphs"  # without a GPU it traces, and needs no C++ compiler
            settings.pop("torch_compile_mode", None)
    return start_from(recipe, output_dir=f"{folder}/model", dataset=text(options), eval_sample_length=0, **settings)


def text(options) -> str:
    return "python-docs" if options.toy else "tinyshakespeare"


CHOICES = {
    "precision": ("bf16", "fp32", "fp16"),
    "optimizer": ("muon", "adamw"),
    "torch_compile": (False, True),
    "attention": ("sdpa", "eager", "flex_attention"),
    "gradient_checkpointing": (False, True),
    "dataloader_num_workers": (0, 2),
}


def paths(options) -> Measures:
    """Five steps with each pair of choices: the loss, and its difference from eager fp32's."""
    first = [values[0] for values in CHOICES.values()]
    most = 1 if options.toy else 2
    known: dict[str, float] = {}
    by_changes: dict[int, list] = {}
    for values in itertools.product(*CHOICES.values()):
        changes = sum(value != usual for value, usual in zip(values, first, strict=True))
        by_changes.setdefault(changes, []).append(dict(zip(CHOICES, values, strict=True)))
    for choice in itertools.chain(*(by_changes[changes] for changes in range(most + 1))):
        changed = [
            f"{name} {value}" for (name, value), usual in zip(choice.items(), first, strict=True) if value != usual
        ]
        yield ", ".join(changed) or "bf16, muon, sdpa", functools.partial(compare_loss, options, known, choice)


def compare_loss(options, known: dict[str, float], choice: dict) -> dict:
    optimizer = choice["optimizer"]
    if optimizer not in known:
        reference = {**choice, **dict.fromkeys(("torch_compile", "gradient_checkpointing"), False)}
        known[optimizer] = fifth_loss(options, {**reference, "precision": "fp32", "attention": "eager"})
    loss = fifth_loss(options, dict(choice))
    difference = loss - known[optimizer]
    figures = {"loss": loss, "difference": difference}
    if not abs(difference) < TOLERANCE[choice["precision"]]:
        figures["error"] = f"the loss differs by {difference:.4f} from that of eager attention in fp32"
    return figures


def fifth_loss(options, choice: dict) -> float:
    attention = choice.pop("attention")
    choice |= {"max_steps": 5, "warmup_steps": 0, "logging_steps": 1, "eval_strategy": "no", "save_strategy": "no"}
    with tempfile.TemporaryDirectory() as folder:
        run = prepared(options, folder, preset="modern-1m", load_best_model_at_end=False, **choice)
        run.trainer.model.set_attn_implementation(attention)
        run.trainer.train()
    torch.compiler.reset()
    return [row["loss"] for row in run.trainer.state.log_history if "loss" in row][-1]


class StopAt(TrainerCallback):
    """Ends training at a time, so that what it has reached by then is evaluated."""

    def __init__(self, deadline: float):
        self.deadline = deadline

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= now() > self.deadline


def recipe(options, name: str, **settings) -> dict:
    """A recipe to its end, or to the end of the part's time: its loss, and when it was nanoGPT's."""
    with tempfile.TemporaryDirectory() as folder:
        began = now()
        run = prepared(options, folder, name, **settings)
        run.trainer.add_callback(StopAt(options.deadline - SAVING_SECONDS))
        record = run.train()
        seconds = now() - began
    torch.compiler.reset()
    results = record["results"]
    reached = [row["seconds"] for row in record["log_history"] if row.get("eval_loss", math.inf) <= TARGET_LOSS]
    return {
        "validation_loss": results["loss"],
        "steps": results["steps"],
        "training_seconds": results["train_seconds"],
        "seconds": seconds,
        f"training_seconds_to_{TARGET_LOSS}": reached[0] if reached else None,
        "parameters": record["parameters"],
    }


def best(options) -> Measures:
    """The recipe for a GPU over three seeds, each trained in another way, next to nanoGPT's recipe for a GPU."""
    graphs = {"torch_compile": True, "torch_compile_mode": "reduce-overhead"}
    ways = {"compiled": {"torch_compile": True}, "CUDA graphs": graphs, "plain": {}}
    runs = [
        (f"{way}, seed {seed}", functools.partial(recipe, options, "shakespeare_char", seed=seed, **settings))
        for seed, (way, settings) in enumerate(ways.items(), 1)
    ]
    theirs = [("nanoGPT", functools.partial(nanogpt_run, options))] if options.nanogpt else []
    yield from [runs[0], *theirs, *runs[1:]]


def nanogpt_run(options) -> dict:
    """nanoGPT's own `train.py` in a copy of the checkout."""
    with tempfile.TemporaryDirectory() as folder:
        checkout = Path(folder, "nanoGPT")
        shutil.copytree(options.nanogpt, checkout, ignore=shutil.ignore_patterns(".git"))
        data = checkout / "data" / "shakespeare_char"
        for split, ids in zip(("train", "val"), common.corpus_ids(), strict=True):
            ids.astype("uint16").tofile(data / f"{split}.bin")
        (data / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": 65}))
        flags = NANOGPT_TOY if options.toy else NANOGPT_ON_A_GPU
        return time_to_loss.run_nanogpt(str(checkout), flags, options.deadline - now() - SAVING_SECONDS)


def classic(options) -> Measures:
    """The ancestor's recipe, compiled."""
    yield "shakespeare_char_classic", functools.partial(recipe, options, "shakespeare_char_classic", torch_compile=True)


# ---- Models next to their peers ------------------------------------------------------------------------------------


def build(name: str, preset: str, options) -> torch.nn.Module:
    """A preset without dropout, or transformers' GPT-2 or nanoGPT of the preset's size."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from modeling_gptlite import GPTLiteConfig, GPTLiteForCausalLM

    ours = name not in ("GPT-2", "nanoGPT")
    vocabulary = 50304 if "124m" in preset and not options.toy else 65
    size = {**(TOY_MODEL if options.toy else {}), "vocab_size": vocabulary, "bos_token_id": None, "eos_token_id": None}
    config = GPTLiteConfig.from_preset(name if ours else preset, **NO_DROPOUT, **size)
    torch.manual_seed(0)
    if ours:
        return GPTLiteForCausalLM(config)
    shape = {"n_embd": config.hidden_size, "n_layer": config.num_hidden_layers, "n_head": config.num_attention_heads}
    shape["vocab_size"] = vocabulary
    if name == "nanoGPT":
        module = common.load_nanogpt(options.nanogpt)
        context = config.max_position_embeddings
        return module.GPT(module.GPTConfig(block_size=context, bias=False, dropout=0.0, **shape))
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    gpt2 = GPT2Config(n_positions=config.max_position_embeddings, **shape, **dropout)
    gpt2.bos_token_id = gpt2.eos_token_id = None
    return GPT2LMHeadModel(gpt2)


def loss_of(name: str, model, ids: torch.Tensor) -> torch.Tensor:
    """The loss of ids `(batch, context + 1)`."""
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    if name == "nanoGPT":
        return model(inputs, targets)[1]
    if name == "GPT-2":
        return model(input_ids=inputs, labels=inputs, use_cache=False).loss
    return model(input_ids=inputs, shift_labels=targets, use_cache=False).loss


def device_of() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def speed(options) -> Measures:
    """Tokens per second and model-FLOPs utilisation in bf16, compiled, with fused AdamW."""
    steps: dict[str, Callable[[], None]] = {}
    names = ["gpt2-124m", *(["nanoGPT"] if options.nanogpt else []), "modern-124m", "GPT-2"]
    for number, name in itertools.product(range(1, 4), names):
        yield f"{name}, round {number}", functools.partial(training_speed, options, name, steps)


def training_speed(options, name: str, steps: dict[str, Callable[[], None]]) -> dict:
    """FLOPs of a token are 6 x parameters + 12 x layers x width x context (PaLM, appendix B)."""
    from modeling_gptlite import GPTLiteConfig

    size = GPTLiteConfig.from_preset("gpt2-124m", **(TOY_MODEL if options.toy else {}))
    context, batch, count = size.max_position_embeddings, 2 if options.toy else 16, 2 if options.toy else 20
    if name not in steps:
        torch.set_float32_matmul_precision("high")
        model = build(name, "gpt2-124m", options).to(device_of()).train()
        forward = torch.compile(model) if torch.cuda.is_available() else model
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        ids = torch.randint(65, (batch, context + 1), device=device_of())

        def step():
            with torch.autocast(device_of().type, torch.bfloat16):
                loss = loss_of(name, forward, ids)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        step.parameters = sum(parameter.numel() for parameter in model.parameters())
        steps[name] = step
        for _ in range(5):
            step()
    synchronize()
    began = now()
    for _ in range(count):
        steps[name]()
    synchronize()
    tokens = batch * context * count / (now() - began)
    parameters = steps[name].parameters
    flops = tokens * (6 * parameters + 12 * size.num_hidden_layers * size.hidden_size * context)
    peak = peak_flops()
    figures = {"tokens_per_second": tokens, "parameters": parameters}
    return {**figures, "model_flops_utilisation": flops / peak} if peak else figures


def peak_flops() -> float | None:
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return next((flops for part, flops in PEAK_FLOPS.items() if part in name), None)


def generate(options) -> Measures:
    """Tokens per second of `generate()` over all texts, in bf16, 10.7M parameters; compiled means a static cache."""
    peers = ["modern-10m", "GPT-2"]
    ways = [(name, "plain") for name in [*peers, *(["nanoGPT"] if options.nanogpt else [])]]
    ways += [(name, "compiled") for name in peers]
    for (name, way), texts in itertools.product(ways, (1, 2 if options.toy else 64)):
        yield f"{name}, {way}, {texts} texts", functools.partial(generation_speed, options, name, way, texts)


def generation_speed(options, name: str, way: str, texts: int) -> dict:
    model = build(name, "modern-10m", options).to(device_of(), torch.bfloat16).eval()
    start = torch.zeros(texts, 1, dtype=torch.long, device=device_of())
    tokens = 26 if options.toy else 250
    settings = {"cache_implementation": "static"} if way == "compiled" else {}
    if name == "nanoGPT":
        write = functools.partial(model.generate, start, tokens)
    else:
        settings |= {"max_new_tokens": tokens, "do_sample": True, "pad_token_id": 0}
        write = functools.partial(model.generate, start, attention_mask=torch.ones_like(start), **settings)
    seconds = []
    for _ in range(3):
        began = now()
        with torch.no_grad():
            write()
        synchronize()
        seconds.append(now() - began)
    return {"tokens_per_second": texts * tokens / min(seconds[1:]), "first_text_seconds": seconds[0]}


# ---- Resuming ------------------------------------------------------------------------------------------------------


class BreakOff(TrainerCallback):
    """Ends training in mid-run, as an error does: nothing is saved."""

    def __init__(self, step: int):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise InterruptedError


def resume(options) -> Measures:
    """The largest difference between the weights of a resumed run and of one without interruption, with dropout."""
    for precision, optimizer in (("bf16", "muon"), ("bf16", "adamw"), ("fp32", "muon"), ("fp32", "adamw")):
        settings = {"precision": precision, "optimizer": optimizer}
        yield f"{optimizer}, {precision}", functools.partial(resumed, options, settings)
    settings = {"precision": "bf16", "optimizer": "muon", "full_determinism": True}
    yield "muon, bf16, full determinism", functools.partial(resumed, options, settings)


def resumed(options, settings: dict) -> dict:
    steps = 8 if options.toy else 40
    settings |= {"preset": "modern-1m", "model_overrides": MODEL_WITH_DROPOUT, "sample_length": 0}
    settings |= {"max_steps": steps, "eval_steps": steps // 4, "save_steps": steps // 4}
    weights = []
    for breaks in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            if breaks:
                run = prepared(options, folder, **settings)
                run.trainer.add_callback(BreakOff(steps - 3))
                with contextlib.suppress(InterruptedError):
                    run.train()
            prepared(options, folder, **settings).train()
            weights.append(load_file(f"{folder}/model/model.safetensors"))
    largest = max((weights[1][name] - value).abs().max().item() for name, value in weights[0].items())
    return {"bit_identical": largest == 0, "largest_difference": largest}


# ---- Several processes ---------------------------------------------------------------------------------------------


def parallel(options) -> Measures:
    """The training command under `accelerate launch` with one process."""
    for engine, flags in (("fsdp2", []), ("deepspeed", ["--optimizer=trainer"]), ("ddp", [])):
        yield engine, functools.partial(launched, options, engine, flags)


def launched(options, engine: str, flags: list[str]) -> dict:
    overrides = [f"--model_overrides={json.dumps(TOY_MODEL)}"] if options.toy else []
    size = [f"--{name}={value}" for name, value in {**SHORT_RUN, "sample_length": 0, "eval_sample_length": 0}.items()]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes=1"]
        command += [f"--config_file=recipes/accelerate/{engine}.yaml", "-m", "scripts.train", "--preset=modern-1m"]
        command += [f"--dataset={text(options)}", f"--output_dir={folder}/model", *size, *overrides, *flags]
        done = subprocess.run(command, cwd=common.ROOT, capture_output=True, text=True)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if "rror" in line]
            raise RuntimeError(f"exit code {done.returncode}: {(lines or [''])[-1]}")
        record = json.loads(Path(folder, "model", "run.json").read_text(encoding="utf-8"))
    return {"validation_loss": record["results"]["loss"], "training_seconds": record["results"]["train_seconds"]}


# ---- Parts in processes --------------------------------------------------------------------------------------------


PARTS: dict[str, tuple[Callable[..., Measures], int]] = {
    "paths": (paths, 60),
    "best": (best, 150),
    "classic": (classic, 60),
    "speed": (speed, 90),
    "resume": (resume, 40),
    "generate": (generate, 40),
    "parallel": (parallel, 20),
}


def work(connection, log: str, part: Callable[..., Measures], skip: int, seconds: float, options) -> None:
    """The measurements of a part after the first `skip`, in a process of its own: sends the name, then the figures."""
    os.setsid()  # so that whatever it starts can be ended with it
    output = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    options.deadline = now() + seconds
    for name, measure in itertools.islice(part(options), skip, None):
        connection.send((name, None))
        try:
            figures = measure()
        except (Exception, SystemExit) as error:  # what fails on a new card cannot be listed
            figures = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()[-2000:]}
            connection.send((name, figures))
            if isinstance(error, torch.AcceleratorError):
                os._exit(1)  # after it, every operation fails in this process
        else:
            connection.send((name, figures))
    connection.send(("", None))


def measurements(part: Callable[..., Measures], seconds: float, options) -> Iterator[tuple[str, dict]]:
    """Names and figures of a part as they are made. A process that dies is replaced, one out of time is ended."""
    deadline, made = now() + seconds, 0
    while True:
        receiver, sender = multiprocessing.get_context("spawn").Pipe(duplex=False)
        with tempfile.NamedTemporaryFile("r", encoding="utf-8", errors="replace") as log:
            arguments = (sender, log.name, part, made, deadline - now(), options)
            process = multiprocessing.get_context("spawn").Process(target=work, args=arguments)
            process.start()
            sender.close()
            running = "start of the process"
            try:
                while receiver.poll(max(0.0, deadline - now())):
                    running, figures = receiver.recv()
                    if not running:
                        return  # all are made
                    if figures is not None:
                        made += 1
                        yield running, figures
                        running = ""
                if running:
                    yield running, {"stopped": "at the time limit"}
                return
            except EOFError:
                end(process)
                if running:
                    made += 1
                    last = (log.read().strip().splitlines() or [""])[-1]
                    yield running, {"error": f"the process ended with exit code {process.exitcode}: {last}"}
                if running.startswith("start"):
                    return
            finally:
                end(process)


def end(process) -> None:
    """Kill a process and all that it started."""
    for kill in (lambda: os.killpg(process.pid, signal.SIGKILL), process.kill):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill()
    process.join()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8, help="time for all parts together")
    parser.add_argument("--nanogpt", default="", help="folder of a clone of nanoGPT")
    parser.add_argument("--toy", action="store_true", help="toy sizes, on whatever device there is")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="only these", metavar="PART")
    parser.add_argument("--results", help="folder of the records (default: benchmarks/results, with --toy out/gpu_toy)")
    options = parser.parse_args(argv)
    if not torch.cuda.is_available() and not options.toy:
        parser.error("there is no CUDA device; --toy runs the same code at toy size")
    folder = Path(options.results or (common.ROOT / "out" / "gpu_toy" if options.toy else common.RESULTS))

    began, planned, broke = now(), 0, []
    for part in options.parts:
        measures, share = PARTS[part]
        planned += share
        end_of_part = began + 60 * options.minutes * planned / sum(PARTS[part][1] for part in options.parts)
        results = {}
        for name, figures in measurements(measures, end_of_part - now(), options):
            results[name] = figures
            shown = {key: value for key, value in figures.items() if key not in ("traceback", "curve")}
            print(f"{now() - began:4.0f} s  {part}  {name}: {json.dumps(shown)}", flush=True)
            common.record(f"gpu_{part}", measures.__doc__, folder, toy=options.toy, results=results)
            if "error" in figures:
                broke.append(f"{part}  {name}: {figures['error']}")
    print(f"\n{now() - began:.0f} s, {len(broke)} measurements broke", *broke, sep="\n", flush=True)


if __name__ == "__main__":
    os.chdir(common.ROOT)
    main()
