"""Shared by all tests: no network, one place for caches, the architectures of the presets at a toy size."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",  # toy models gain nothing from threads and lose to whatever else the machine does
}

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


def tiny_config(preset: str, **overrides):
    from modeling_gptlite import GPTLiteConfig

    return GPTLiteConfig.from_preset(preset, **{**TINY, **overrides})


def tiny_model(preset: str, seed: int = 0, **overrides):
    import torch

    from modeling_gptlite import GPTLiteForCausalLM

    torch.manual_seed(seed)
    return GPTLiteForCausalLM(tiny_config(preset, **overrides)).eval()


def run_python(code: str, cwd: Path, **environment) -> str:
    """The standard output of `code` in a fresh process that cannot import this package."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env |= {"HF_HOME": str(cwd / "hf_home"), **environment}
    result = subprocess.run([sys.executable, "-c", code], cwd=cwd, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(autouse=True)
def own_caches(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("GPTLITE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def text_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "bottles.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def trained(tmp_path_factory, text_file) -> Path:
    """A folder as `scripts.train` leaves it: 20 steps of a toy model on a toy text."""
    folder = tmp_path_factory.mktemp("runs") / "bottles"
    train_tiny(text_file, folder)
    return folder


@pytest.fixture(scope="session")
def talking(tmp_path_factory, trained) -> Path:
    """The toy model, fine-tuned to answer whatever is green with "bottles!"."""
    folder = tmp_path_factory.mktemp("talking")
    talks = [
        [{"role": "user", "content": f"{n} green"}, {"role": "assistant", "content": "bottles!"}] for n in range(99)
    ]
    (folder / "talks.jsonl").write_text("\n".join(json.dumps({"messages": talk}) for talk in talks))
    train_tiny(folder / "talks.jsonl", folder / "run", f"--model_name_or_path={trained}", "--max_steps=100")
    return folder / "run"


def train_tiny(text_file: Path | None, folder: Path, *flags: str) -> None:
    from scripts import train

    train.main(
        [
            *([f"--train_file={text_file}"] if text_file else []),
            f"--output_dir={folder}",
            "--preset=modern-1m",
            '--model_overrides={"hidden_size": 32, "num_hidden_layers": 2, "max_position_embeddings": 32}',
            "--optimizer=muon",
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
