"""The model card of a run: the template `model_card.md`, filled from the run's record.

card = render_card(read_run(Path("out/quickstart")), "user/name")
"""

import math
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import TemplateError

from ..hub import KIND_METADATA
from .record import RUN_FILE, RecordError


TEMPLATE = Path(__file__).with_name("model_card.md")
METRICS = {
    "loss": "validation loss (nats per token)",
    "perplexity": "perplexity (per token)",
    "bits_per_character": "bits per character",
}


def render_card(record: dict[str, Any], repo_id: str, kind: str = "gptlite") -> str:
    """The text of the model card of a run.

    Args:
        record: What `run.json` holds.
        repo_id: What the usage example loads: a repository id on the Hub, or the name of a folder.
        kind: How the weights are saved, a key of `KIND_METADATA`.

    Raises:
        RecordError: An entry that the card needs is missing from the record, or has a wrong type.
    """
    name = repo_id.split("/")[-1]
    try:
        metadata = _metadata(record, name, kind)
        card = ModelCard.from_template(
            metadata, template_path=str(TEMPLATE), model_name=name, repo_id=repo_id, kind=kind, **record
        )
    except KeyError as error:
        raise RecordError(
            f"{RUN_FILE} is not the record of a run: it has no {error}; delete it or correct it"
        ) from error
    except (TypeError, ValueError, AttributeError, TemplateError) as error:
        raise RecordError(f"{RUN_FILE} is not the record of a run: {error}; delete it or correct it") from error
    return card.content


def _metadata(record: dict[str, Any], name: str, kind: str) -> ModelCardData:
    data, results = record["data"], record["results"]
    adapter = {"library_name": "peft"} if record.get("lora_rank") and kind == "gptlite" else {}
    return ModelCardData(
        **{**KIND_METADATA[kind], **adapter},
        language=data["language"],
        license=data["license"],
        pipeline_tag="text-generation",
        datasets=data["hub_dataset"] and [data["hub_dataset"]],
        base_model=record["base_model"],
        model_name=name,
        eval_results=[
            EvalResult(
                task_type="text-generation",
                dataset_type=data["name"],
                dataset_name=data["name"],
                dataset_split="validation",
                metric_type=metric,
                metric_name=label,
                metric_value=round(results[metric], 4),
            )
            for metric, label in METRICS.items()
            if results[metric] is not None and math.isfinite(results[metric])
        ],
    )
