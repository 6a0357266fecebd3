"""What several test files share: the toy text and models, running commands, processes, files of other programs."""

import functools
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from modeling_gptlite import GPTLiteConfig, GPTLiteForCausalLM
from modeling_gptlite.data.windows import EvaluationWindows, RandomWindows
from modeling_gptlite.runs.run import Interrupted
from modeling_gptlite.training.trainer import CausalLMTrainer, CausalLMTrainingArguments
from scripts import push_to_hub, train
from scripts.cli import run
from tokenization import build_bpe_tokenizer, build_char_tokenizer, build_word_tokenizer, encode_corpus


ROOT = Path(__file__).parent.parent
TEXT = "".join(
    f"{i} green bottles standing on the wall,\nand if one should fall: {i - 1}!\n" for i in range(300, 0, -1)
)
# What a run leaves at the top of its folder, and a push publishes.
FOLDER_FILES = {
    "README.md",
    "config.json",
    "configuration_gptlite.py",
    "generation_config.json",
    "loss.png",
    "model.safetensors",
    "modeling_gptlite.py",
    "run.json",
    "samples.md",
    "tokenizer.json",
    "tokenizer_config.json",
}
# Every architecture among the presets; modern-10m and modern-124m differ from modern-1m in size only.
ARCHITECTURES = ["classic-10m", "nanogpt-10m", "gpt2-124m", "modern-1m"]
TINY = {
    "vocab_size": 65,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    "bos_token_id": None,
    "eos_token_id": None,
    "attention_dropout": 0.0,
    "hidden_dropout": 0.0,
    "embedding_dropout": 0.0,
}
# Of a model of another class, with a vocabulary as large as those of pretrained ones.
TINY_BASE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "vocab_size": 50_000,
}


def tiny_config(preset: str, **overrides):
    return GPTLiteConfig.from_preset(preset, **{**TINY, **overrides})


def tiny_model(preset: str, seed: int = 0, **overrides):
    torch.manual_seed(seed)
    return GPTLiteForCausalLM(tiny_config(preset, **overrides)).eval()


def save_base(folder: Path, kind: str, text: str) -> Path:
    """Save a `TINY_BASE` of a class, and a tokenizer for the characters of a text."""
    tokenizer = build_char_tokenizer(text)
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, tie_word_embeddings=True, **TINY_BASE, **ids)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def fuzzed(examples: int):
    """Settings of a fuzz test: always the same examples, or with `make fuzz` as many new ones as it asks for."""
    asked = int(os.environ.get("FUZZ_EXAMPLES", "0"))
    return settings(
        max_examples=asked or examples,
        derandomize=not asked,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


def run_python(code: str, cwd: Path, **environment) -> str:
    """The standard output of `code` in a fresh process that cannot import this package."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env |= {"HF_HOME": str(cwd / "hf_home"), **environment}
    result = subprocess.run([sys.executable, "-c", code], cwd=cwd, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def train_tiny(text_file: Path | None, folder: Path, *flags: str) -> None:
    is_new = not any(flag.startswith("--model_name_or_path") for flag in flags)
    sizes = '{"hidden_size": 32, "num_hidden_layers": 2, "max_position_embeddings": 32}'
    train.main(
        [
            *([f"--train_file={text_file}"] if text_file else []),
            f"--output_dir={folder}",
            *(["--preset=modern-1m", f"--model_overrides={sizes}"] if is_new else []),
            "--optimizer=muon",
            *([] if any(flag.startswith("--optimizer") for flag in flags) else ["--muon_momentum_warmup=1"]),
            "--max_steps=20",
            "--warmup_steps=2",
            "--eval_steps=10",
            "--save_steps=10",
            "--logging_steps=5",
            "--per_device_train_batch_size=8",
            "--sample_length=40",
            "--language=en",
            "--license=cc0-1.0",
            *flags,
        ]
    )


def toy_run(text_file: Path, folder: Path, **more) -> dict:
    """Settings of a toy run with short windows, and with dropout: its random numbers count."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "max_position_embeddings": 32, "hidden_dropout": 0.1}
    return {
        "train_file": [str(text_file)],
        "output_dir": str(folder),
        "preset": "modern-1m",
        "model_overrides": sizes,
        "per_device_train_batch_size": 8,
        "short_context": 16,
        "sample_length": 10,
        **more,
    }


class StopAt(TrainerCallback):
    """The stop button of a notebook, pressed during a step."""

    def __init__(self, step: int):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step - 1:
            signal.raise_signal(signal.SIGINT)


def interrupted(run, step: int):
    """`run`, interrupted at a step."""
    stop = StopAt(step)
    run.trainer.add_callback(stop)
    with pytest.raises(Interrupted, match=f"stopped at step {step} with a checkpoint"):
        run.train()
    run.trainer.remove_callback(stop)
    return run


def call(main, *argv, capsys=None):
    """Run a command as `python -m` does; returns its exit code, standard output and standard error."""
    code = 0
    try:
        run(lambda: main([str(argument) for argument in argv]))
    except SystemExit as end:
        code = end.code
    return code, *capsys.readouterr()


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def refused(main, *argv, capsys, told=()):
    code, _, err = call(main, *argv, capsys=capsys)
    assert code == 2, err
    assert len(err.strip().splitlines()) == 1, err
    assert "Traceback" not in err
    for word in told:
        assert word in err
    return err


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def in_child(work) -> int:
    """The exit code of `work` in a forked process; negative is the signal that ended it."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except SystemExit as end:
            code = end.code
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_at(cls, name: str, number: int, monkeypatch) -> None:
    """SIGKILL this process in the middle of the `number`-th call of a method or function."""
    original, calls = getattr(cls, name), []

    def deadly(*args, **kwargs):
        calls.append(name)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    monkeypatch.setattr(cls, name, deadly)


def same_weights(one: Path, other: Path) -> bool:
    one, other = (load_file(folder / "model.safetensors") for folder in (one, other))
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def shake(model):
    """Moves biases and norms from their initial zeros and ones."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def shaken(preset, **overrides):
    return shake(tiny_model(preset, **overrides))


def nanogpt_checkpoint(bias=True, vocab_size=65, prefix="", **overrides):
    """What nanoGPT's train.py saves, with random weights: 2 layers of width 32, 4 heads, context 32."""
    shapes = {"transformer.wte.weight": (vocab_size, 32), "transformer.wpe.weight": (32, 32)}
    for layer in range(2):
        linears = {"attn.c_attn": (96, 32), "attn.c_proj": (32, 32), "mlp.c_fc": (128, 32), "mlp.c_proj": (32, 128)}
        for name, shape in {"ln_1": (32,), "ln_2": (32,), **linears}.items():
            shapes[f"transformer.h.{layer}.{name}.weight"] = shape
            if bias:
                shapes[f"transformer.h.{layer}.{name}.bias"] = shape[:1]
    shapes |= {"transformer.ln_f.weight": (32,)} | ({"transformer.ln_f.bias": (32,)} if bias else {})
    generator = torch.Generator().manual_seed(3)
    weights = {prefix + name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    weights[prefix + "lm_head.weight"] = weights[prefix + "transformer.wte.weight"]
    arguments = {"n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": 32, "bias": bias, "vocab_size": vocab_size}
    return {
        "model": weights,
        "model_args": {**arguments, "dropout": 0.1, **overrides},
        "optimizer": {"state": {0: {"step": torch.tensor(20.0)}}, "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.99)}]},
        "iter_num": 20,
        "best_val_loss": torch.tensor(4.1),
        "config": {"dataset": "shakespeare_char", "device": "cpu", "compile": False},
    }


def nanogpt_logits(checkpoint, ids):
    """nanoGPT's arithmetic, computed from a checkpoint alone."""
    arguments, weights = checkpoint["model_args"], checkpoint["model"]

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights.get(f"{name}.bias"), 1e-5)

    def linear(x, name):
        return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    x = weights["transformer.wte.weight"][ids] + weights["transformer.wpe.weight"][: ids.shape[1]]
    for layer in range(arguments["n_layer"]):
        block = f"transformer.h.{layer}"
        query_key_value = linear(norm(x, f"{block}.ln_1"), f"{block}.attn.c_attn").split(arguments["n_embd"], dim=2)
        heads = [part.unflatten(2, (arguments["n_head"], -1)).transpose(1, 2) for part in query_key_value]
        attended = F.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2).flatten(2)
        x = x + linear(attended, f"{block}.attn.c_proj")
        x = x + linear(F.gelu(linear(norm(x, f"{block}.ln_2"), f"{block}.mlp.c_fc")), f"{block}.mlp.c_proj")
    return linear(norm(x, "transformer.ln_f"), "lm_head")


def save_nanogpt(folder, tokens=None, **checkpoint):
    """A folder as nanoGPT's, with its meta.pkl put beside the checkpoint."""
    folder.mkdir(parents=True)
    tokens = sorted(set(TEXT)) if tokens is None else tokens
    checkpoint = nanogpt_checkpoint(**{"vocab_size": len(tokens), **checkpoint})
    torch.save(checkpoint, folder / "ckpt.pt")
    meta = {"vocab_size": len(tokens), "itos": dict(enumerate(tokens)), "stoi": {t: i for i, t in enumerate(tokens)}}
    (folder / "meta.pkl").write_bytes(pickle.dumps(meta))
    return checkpoint


IDS = encode_corpus(TEXT, build_char_tokenizer(TEXT))
CUT = int(0.9 * len(IDS))


def trainer_for(model, folder, steps=6, trainer=None, **settings):
    defaults = {
        "per_device_train_batch_size": 8,
        "max_steps": steps,
        "precision": "fp32",
        "save_strategy": "no",
        "eval_strategy": "no",
        "load_best_model_at_end": False,
        "warmup_steps": 0,
    }
    args = CausalLMTrainingArguments(str(folder), **{**defaults, **settings})
    samples = args.max_steps * args.per_device_train_batch_size * args.gradient_accumulation_steps
    return CausalLMTrainer(
        model,
        args,
        train_dataset=RandomWindows(IDS[:CUT], 32, samples, args.seed),
        eval_dataset=EvaluationWindows(IDS[CUT:], 32),
        **(trainer or {}),
    )


ANSWERS = [{"prompt": f"{n} green ", "completion": "bottles!"} for n in range(100)]
TALKS = [
    {"messages": [{"role": "user", "content": f"{n} green"}, {"role": "assistant", "content": "bottles!"}]}
    for n in range(100)
]


def results(folder) -> dict:
    """What `run.json` says about a finished run."""
    return json.loads((folder / "run.json").read_text())["results"]


def write_rows(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return path


# ---- The Hub -------------------------------------------------------------------------------------------------------


REPO = "ada/bottles"


def push(folder, *flags, capsys, repo_id=REPO):
    """Run `scripts.push_to_hub`; returns what it printed."""
    code, out, err = call(push_to_hub.main, f"--model={folder}", f"--repo_id={repo_id}", *flags, capsys=capsys)
    assert code == 0, err
    return out


def published(server, repo_id=REPO, revision="main"):
    """The names of the files in a repository of the test Hub."""
    return set(server.repo(repo_id).files(revision)) - {".gitattributes"}


def commits(server, repo_id=REPO):
    """The commits of a repository of the test Hub, the newest first."""
    return [commit for commit in server.repo(repo_id).log() if commit.title != "initial commit"]


def saved_logits(folder, prompt="12 green bottles"):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return model(**tokenizer(prompt, return_tensors="pt")).logits


# Characters of one to four bytes; some are letters of the alphabet that represents bytes in GPT-2's tokenizer.
AWKWARD = TEXT + "\té ĉĠ—‘日本🎉"


@functools.cache
def tokenizer_of_kind(kind: str):
    return {
        "char": lambda: build_char_tokenizer(AWKWARD),
        "bpe": lambda: build_bpe_tokenizer(AWKWARD, vocab_size=320),
        "word": lambda: build_word_tokenizer(TEXT, vocab_size=40),
        "byte_fallback": lambda: build_char_tokenizer(TEXT, byte_fallback=True),
        "no_special_tokens": lambda: build_char_tokenizer(TEXT, special_tokens=False),
    }[kind]()


def save_model(folder, preset, tokenizer="char", dtype=torch.float32, **overrides):
    """A saved model of random weights that fits the tokenizer."""
    tokenizer = tokenizer_of_kind(tokenizer)
    overrides = {"vocab_size": len(tokenizer), "bos_token_id": tokenizer.bos_token_id, **overrides}
    shaken(preset, **overrides).to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def load_saved(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    return AutoModelForCausalLM.from_pretrained(folder), tokenizer
