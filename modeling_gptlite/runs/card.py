"""The model card of a run: the template `model_card.md`, filled from the run's record.

card = render_card(read_run(Path("out/quickstart")), "user/name")
"""

import contextlib
import json
import math
import os
import re
import shlex
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData, hf_hub_download, metadata_load
from huggingface_hub.errors import HTTPError
from jinja2 import TemplateError

from ..hub import card_metadata, saved_config
from .record import RUN_FILE, RecordError


TEMPLATE = Path(__file__).with_name("model_card.md")
METRICS = {
    "loss": "validation loss (nats per token)",
    "perplexity": "perplexity (per token)",
    "bits_per_character": "bits per character",
}


# ---- What the record says about the model --------------------------------------------------------------------------


def describe_model(model, tokenizer, base: str | None) -> dict[str, Any]:
    """What the card says about a model that is about to be trained, as entries of the record.

    Args:
        model: A causal language model, or a `PeftModel` of one.
        base: Folder or repository id of the model that is fine-tuned; None if it is trained from scratch.
    """
    network = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = network.config.get_text_config()
    facts = {
        "class": type(network).__name__,
        "model_type": network.config.model_type,
        "context_length": getattr(config, "max_position_embeddings", None),
        "chat_template": tokenizer.chat_template is not None,
    }
    return {"model": facts, "base_card": {} if base is None else _read_card(base)}


def _describe_saved(folder: Path) -> dict[str, Any]:
    """The entry `model` for the record of an earlier version, which lacks it."""
    config = saved_config(folder)
    return {
        "class": (config.get("architectures") or [None])[0],
        "model_type": config.get("model_type"),
        "context_length": config.get("max_position_embeddings", config.get("n_positions")),
        "chat_template": (folder / "chat_template.jinja").exists(),
    }


def _read_card(name_or_path: str) -> dict[str, Any]:
    """License and languages in the metadata of a model's card; empty where they are not known."""
    metadata: Any = None
    with contextlib.suppress(OSError, ValueError, yaml.YAMLError, HTTPError):
        is_local = os.path.isdir(name_or_path)
        path = Path(name_or_path, "README.md") if is_local else hf_hub_download(name_or_path, "README.md")
        metadata = metadata_load(path)
    known = metadata or {}
    licenses = {name: known[name] for name in ("license", "license_name", "license_link") if _is_text(known.get(name))}
    languages = known.get("language")
    languages = languages if isinstance(languages, list) else [languages]
    return {**licenses, "languages": [language for language in languages if _is_text(language)]}


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


# ---- The card ------------------------------------------------------------------------------------------------------


def render_card(record: dict[str, Any], repo_id: str, kind: str = "gptlite", folder: Path | None = None) -> str:
    """The text of the model card of a run.

    Args:
        record: What `run.json` holds.
        repo_id: What the usage example loads: a repository id on the Hub, or the name of a folder.
        kind: What the model is published as: "gptlite" (as it is saved), "native" or "gguf".
        folder: The saved model, for the record of an earlier version, which does not describe it.

    Raises:
        RecordError: An entry that the card needs is missing from the record, or has a wrong type.
        HubError: `folder` is needed, and has no readable `config.json`.
    """
    name = repo_id.split("/")[-1]
    if "model" not in record and folder is not None:
        record = {**record, "model": _describe_saved(folder)}
    try:
        is_gptlite = record["model"]["model_type"] == "gptlite"
        is_adapter = _is_adapter(record, kind)
        card = ModelCard.from_template(
            _metadata(record, name, kind),
            template_path=str(TEMPLATE),
            model_name=name,
            repo_id=repo_id,
            kind=kind,
            is_gptlite=is_gptlite,
            is_adapter=is_adapter,
            remote_code=is_gptlite and kind == "gptlite",
            shell_prompt="$'\\n'" if record["prompt"] == "\n" else shlex.quote(record["prompt"]),
            quote=partial(json.dumps, ensure_ascii=False),
            **record,
        )
    except KeyError as error:
        raise RecordError(
            f"{RUN_FILE} is not the record of a run: it has no {error}; delete it or correct it"
        ) from error
    except (TypeError, ValueError, AttributeError, TemplateError) as error:
        raise RecordError(f"{RUN_FILE} is not the record of a run: {error}; delete it or correct it") from error
    return card.content


def _is_adapter(record: Mapping[str, Any], kind: str) -> bool:
    return bool(record.get("lora_rank")) and not record.get("lora_merged") and kind == "gptlite"


def _metadata(record: dict[str, Any], name: str, kind: str) -> ModelCardData:
    results, is_adapter = record["results"], _is_adapter(record, kind)
    dataset = record["data"]["hub_dataset"]
    return ModelCardData(
        **card_metadata(record["model"]["model_type"], kind, is_adapter),
        **_terms(record),
        pipeline_tag="text-generation",
        datasets=dataset and [dataset],
        base_model=record["base_model"],
        base_model_relation=record["base_model"] and ("adapter" if is_adapter else "finetune"),
        model_name=name,
        eval_results=[
            EvalResult(
                task_type="text-generation",
                dataset_type=_dataset_id(record["data"]),
                dataset_name=record["data"]["name"],
                dataset_split="validation",
                metric_type=metric,
                metric_name=label,
                metric_value=round(results[metric], 4),
            )
            for metric, label in METRICS.items()
            if results[metric] is not None and math.isfinite(results[metric])
        ],
    )


def _dataset_id(data: Mapping[str, Any]) -> str:
    """The dataset as the Hub wants it: a repository id, or at least characters of one."""
    return data["hub_dataset"] or re.sub(r"[^A-Za-z0-9_.-]+", "-", data["name"]).strip("-") or "text"


def _terms(record: dict[str, Any]) -> dict[str, Any]:
    """License and languages: those that were given; else the base model's license, and its languages and the text's.

    A model that is trained from scratch has the license of its text. Without a known license of the base model, a
    fine-tuned one states none.
    """
    data, given, base = record["data"], record["arguments"], record.get("base_card") or {}
    languages = [] if given.get("language") else list(base.get("languages", []))
    if data["language"] and data["language"] not in languages:
        languages.append(data["language"])
    terms = {"license": data["license"]}
    if record["fine_tuned_from"] and not given.get("license"):
        terms = {name: base[name] for name in ("license", "license_name", "license_link") if name in base}
    return {**terms, "language": languages[0] if len(languages) == 1 else languages or None}
