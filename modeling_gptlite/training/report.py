"""What a run leaves beside its weights: `run.json`, and a model card filled from it."""

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData


RUN_FILE = "run.json"
_PACKAGES = ("torch", "transformers", "tokenizers", "accelerate", "datasets", "huggingface_hub")


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Commit, versions and hardware; no path, user or host name."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in _PACKAGES},
        "hardware": _hardware(device),
    }


def without_places(arguments: dict[str, Any]) -> dict[str, Any]:
    """`arguments` as they may be published: no token, and of every path only its last part."""
    return {name: _last_part(value) for name, value in arguments.items() if not name.endswith("token")}


def write_run(folder: Path, record: dict[str, Any]) -> None:
    """Write `run.json` whole or not at all."""
    partial = folder / f".{RUN_FILE}"
    partial.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, folder / RUN_FILE)


def render_card(template: Path, record: dict[str, Any], repo_id: str, native: bool = False) -> str:
    """The model card of a run: the template filled from its record.

    Args:
        record: What `run.json` holds.
        repo_id: What the usage block loads: a Hub name, or a folder's.
        native: The weights are saved as a class of transformers itself, so no remote code is needed.
    """
    name, results = repo_id.split("/")[-1], record["results"]
    data = ModelCardData(
        language=record["data"]["language"],
        license=record["data"]["license"],
        library_name="peft" if record.get("lora_rank") else "transformers",
        pipeline_tag="text-generation",
        tags=["gptlite"] if native else ["gptlite", "custom_code"],
        datasets=record["data"]["hub_dataset"] and [record["data"]["hub_dataset"]],
        base_model=record["base_model"],
        model_name=name,
        eval_results=[
            EvalResult(
                task_type="text-generation",
                dataset_type=record["data"]["name"],
                dataset_name=record["data"]["name"],
                dataset_split="validation",
                metric_type=metric,
                metric_name=label,
                metric_value=round(results[metric], 4),
            )
            for metric, label in (
                ("loss", "validation loss (nats per token)"),
                ("perplexity", "perplexity (per token)"),
                ("bits_per_character", "bits per character"),
            )
        ],
    )
    card = ModelCard.from_template(
        data, template_path=str(template), model_name=name, repo_id=repo_id, native=native, **record
    )
    return card.content


def plain_card(repo_id: str, native: bool = False) -> str:
    """The card of a model of which no run is recorded: metadata, and nothing that nobody measured."""
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["gptlite"] if native else ["gptlite", "custom_code"],
    )
    return f"---\n{data.to_yaml()}\n---\n\n# {repo_id.split('/')[-1]}\n"


def _last_part(value):
    if isinstance(value, list):
        return [_last_part(item) for item in value]
    return Path(value).name if isinstance(value, str) and os.path.exists(value) else value


def _commit() -> str | None:
    """The commit of the checkout that this code runs from, marked if files differ from it."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        status = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit} with changes" if status.stdout.strip() else commit


def _hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(device)}"
    processor = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            processor = next(
                (line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), processor
            )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    name = f"{cores} cores of {processor}"
    return name if device.type == "cpu" else f"{device.type}, {name}"
