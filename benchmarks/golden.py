"""Golden runs: 30 steps of toy models, whose losses and weights are compared with records in `tests/golden/`.

    python -m benchmarks.golden              compare; the exit code is 1 if a run differs
    python -m benchmarks.golden --update     write the record for this kind of CPU
    python -m benchmarks.golden --as-avx2    the same for Intel CPUs without AVX-512: the libraries are limited to AVX2

Every architecture is trained with both optimizers, then prompt and completion pairs, LoRA and bf16. There is one record
for each PyTorch version and kind of CPU, because both change the order of floating-point operations. If there is a
record for this kind, losses and weights must be equal bit for bit; if not, losses must agree within `TOLERANCE`.
"""

import argparse
import contextlib
import hashlib
import io
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from scripts import train


RECORDS = Path(__file__).parent.parent / "tests" / "golden"
STEPS = 30
# Largest difference of any loss, in nats per token, between two kinds of CPU. Without Intel's MKL dropout draws other
# masks, so the runs with dropout may take another path.
TOLERANCE, TOLERANCE_WITH_DROPOUT = 0.01, 0.3

ARCHITECTURES = {
    "classic": "classic-10m",
    "nanogpt": "nanogpt-10m",
    "gpt2": "gpt2-124m",
    "modern": "modern-1m",
}
SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 32}
SETTINGS = {
    "precision": "fp32",
    "max_steps": STEPS,
    "warmup_steps": 3,
    "eval_steps": 10,
    "save_steps": 10,
    "logging_steps": 1,
    "per_device_train_batch_size": 8,
    "sample_length": 0,
    "eval_sample_length": 0,
}
TEXT = "".join(f"{n} sheep jump over the fence, and {n * n % 97} of them\ncome back: {n % 7}!\n" for n in range(400))
PAIRS = "".join(json.dumps({"prompt": f"{n} + 1 = ", "completion": f"{n + 1}\n"}) + "\n" for n in range(300))

RUNS: dict[str, dict[str, Any]] = {
    **{
        f"{name}, {optimizer}": {"preset": preset, "optimizer": optimizer}
        for name, preset in ARCHITECTURES.items()
        for optimizer in ("adamw", "muon")
    },
    "modern, muon, bf16": {"preset": "modern-1m", "optimizer": "muon", "precision": "bf16"},
    "pairs": {"preset": "modern-1m", "train_file": "pairs.jsonl"},
    "LoRA": {"model_name_or_path": "modern, adamw", "lora_r": 4},
}


def cpu_kind() -> str:
    """What of the CPU changes the order of floating-point operations: vendor, vector instructions, bf16 units."""
    capability = torch.backends.cpu.get_cpu_capability().lower()
    parts = [_vendor(), capability]
    if capability == "avx512":
        units = {"bf16": torch.cpu._is_avx512_bf16_supported(), "amx": torch.cpu._is_amx_tile_supported()}
        parts += [name for name, is_there in units.items() if is_there]
    return "-".join(parts)


def _vendor() -> str:
    """The maker of the CPU; for AMD with the family, which is the generation of the core (all of Intel's are 6)."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if facts.get("vendor_id") == "AuthenticAMD":
            return f"amd-family{facts['cpu family']}"
        if "vendor_id" in facts:
            return facts["vendor_id"].removeprefix("Genuine").lower()
    return f"{platform.system()}-{platform.machine()}".lower()


def record_path() -> Path:
    return RECORDS / f"torch-{torch.__version__.split('+')[0]}-{cpu_kind()}.json"


def train_golden(name: str, folder: Path) -> dict[str, Any]:
    """Train one run of `RUNS` in `folder`, on one thread; LoRA also needs the run that it fine-tunes there.

    Returns:
        `weights` (sha256), `losses` of each step and `validation` losses, in nats per token.
    """
    (folder / "text.txt").write_text(TEXT)
    (folder / "pairs.jsonl").write_text(PAIRS)
    settings = {"train_file": "text.txt", **SETTINGS, "output_dir": name, **RUNS[name]}
    for field in ("train_file", "output_dir", "model_name_or_path"):
        if field in settings:
            settings[field] = folder / settings[field]
    if "preset" in settings:
        settings["model_overrides"] = json.dumps(SIZE)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            train.main([f"--{field}={value}" for field, value in settings.items()])
    finally:
        torch.set_num_threads(threads)
    history = json.loads((folder / name / "run.json").read_text())["log_history"]
    return {
        "weights": _digest(folder / name),
        "losses": [row["loss"] for row in history if "loss" in row],
        "validation": [row["eval_loss"] for row in history if "eval_loss" in row],
    }


def _digest(folder: Path) -> str:
    """The sha256 of all weights: names, types, shapes and values."""
    (file,) = folder.glob("*model.safetensors")
    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(file).items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def expected() -> tuple[dict[str, Any], bool]:
    """The recorded runs to compare with, and whether they must be equal bit for bit."""
    own = record_path()
    return json.loads((own if own.exists() else max(RECORDS.glob("*.json"))).read_text()), own.exists()


def difference(name: str, run: dict[str, Any], recorded: dict[str, Any], exact: bool) -> str | None:
    """What differs between a run and its record, in words; None if nothing does."""
    pairs = [(a, b) for kind in ("losses", "validation") for a, b in zip(run[kind], recorded[kind], strict=True)]
    largest = max(abs(a - b) for a, b in pairs)
    if not exact:
        has_dropout = RUNS[name].get("preset", "modern-1m") != "modern-1m"
        tolerance = TOLERANCE_WITH_DROPOUT if has_dropout else TOLERANCE
        return f"losses differ by up to {largest:.2g}, more than {tolerance}" if largest > tolerance else None
    if run == recorded:
        return None
    steps = zip(run["losses"], recorded["losses"], strict=True)
    first = next((f"from step {step} on" for step, (a, b) in enumerate(steps, 1) if a != b), "only in validation")
    where = f"losses differ {first}, by up to {largest:.2g}" if largest else "equal losses"
    return f"{where}; weights {'equal' if run['weights'] == recorded['weights'] else 'differ'}"


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true", help="write the record instead of comparing with it")
    parser.add_argument("--as-avx2", action="store_true", help="limit the libraries to AVX2 instructions")
    options = parser.parse_args(argv)
    if options.as_avx2 and "ATEN_CPU_CAPABILITY" not in os.environ:  # read when the libraries are loaded
        limits = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks.golden", *sys.argv[1:]], os.environ | limits)
    if options.update:
        update()
    else:
        raise SystemExit(compare())


def compare() -> bool:
    """Train every run and print a line for each; whether any differs from its record."""
    recorded, exact = expected()
    print(f"{record_path().stem}: {'bit for bit' if exact else f'no record; losses within {TOLERANCE} nats'}")
    differs = False
    for name, run in train_all():
        found = difference(name, run, recorded[name], exact)
        differs |= found is not None
        print(describe(name, run, found or "equal"), flush=True)
    return differs


def update() -> None:
    """Train every run and write the record for this PyTorch version and kind of CPU."""
    rows = []
    for name, run in train_all():
        rows.append(f" {json.dumps(name)}: {json.dumps(run)}")
        print(describe(name, run, "recorded"), flush=True)
    record_path().write_text("{\n" + ",\n".join(rows) + "\n}\n")
    print(f"written to {record_path().name}")


def train_all() -> Iterator[tuple[str, dict[str, Any]]]:
    with tempfile.TemporaryDirectory() as folder:
        for name in RUNS:
            yield name, train_golden(name, Path(folder))


def describe(name: str, run: dict[str, Any], verdict: str) -> str:
    return f"{name:20}{run['losses'][-1]:8.4f}  {run['weights'][:12]}  {verdict}"


if __name__ == "__main__":
    main()
