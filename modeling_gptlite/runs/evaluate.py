"""Evaluating saved models on the same text: loss and its uncertainty, calibration, and the text that they generate.

evaluation = evaluate_models(["out/quickstart", "out/tuned"], splits, EvaluationSettings(num_samples=16))
print(table(evaluation))
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..decoding import SAMPLING
from ..errors import UserError, check
from .record import RUN_FILE


@dataclass
class EvaluationSettings:
    """How to evaluate."""

    num_samples: int = field(
        default=64, metadata={"help": "Places in the validation split that each model continues; 0: none."}
    )
    max_new_tokens: int = field(default=256, metadata={"help": "Tokens in each continuation."})
    temperature: float = field(
        default=SAMPLING["temperature"],
        metadata={"help": "Of the continuations. Below 1: more predictable; above 1: more random."},
    )
    context_length: int | None = field(
        default=None, metadata={"help": "Tokens per window. Default: each model's context length."}
    )
    batch_size: int = field(default=64, metadata={"help": "Windows per batch."})
    seed: int = field(default=0, metadata={"help": "Of the continuations."})
    device: str | None = field(default=None, metadata={"help": "cpu, cuda, mps, ... Default: the fastest available."})


def check_settings(settings: EvaluationSettings) -> None:
    """Raise `UserError` if a setting is out of range, or a package is missing."""
    rules = [
        ("num_samples", settings.num_samples >= 0, "0 (none) or more"),
        ("max_new_tokens", settings.max_new_tokens >= 1, "at least 1"),
        ("temperature", settings.temperature > 0, "above 0"),
        ("batch_size", settings.batch_size >= 1, "at least 1"),
    ]
    check(settings, rules)
    if settings.num_samples:
        try:
            import sacrebleu  # noqa: F401
        except ImportError as error:
            raise UserError("BLEU needs sacrebleu: pip install 'gptlite[eval]', or --num_samples 0") from error


def read_record(model: str) -> dict[str, Any]:
    """The `run.json` in the folder of a trained model.

    Raises:
        UserError: There is none, or it is not the record of a run.
    """
    path = Path(model) / RUN_FILE
    if not path.is_file():
        raise UserError(f"{model} has no {RUN_FILE}: name the text to evaluate on with --dataset or --train_file")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        record["data"]["name"], record["arguments"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not the record of a run: {error!r}") from error
    return record


def recorded_source(model: str) -> dict[str, Any]:
    """The source arguments (`dataset`, `text_column`, ...) of the text that a model was trained on.

    Raises:
        UserError: The record does not say where that text is: it was a file.
    """
    from ..data.sources import SOURCES

    record = read_record(model)
    name = record["data"].get("hub_dataset") or record["data"]["name"]
    if not (record["data"].get("hub_dataset") or name in SOURCES):
        raise UserError(f"{model} was trained on {name}: say where that is with --train_file or --dataset")
    return {**record["arguments"], "train_file": None, "dataset": name}


# ---- Evaluation ----------------------------------------------------------------------------------------------------


def evaluate_models(
    models: list[str], splits: Callable, settings: EvaluationSettings, report: Callable[[str], None] = print
) -> dict[str, Any]:
    """Evaluate models on the same validation split, which training never reads.

    Args:
        models: Folders, or repository ids on the Hub.
        splits: Of a tokenizer: the validation ids, what `run.json` says about the data, and the training text.
        report: Called with a line of progress per model.

    Returns:
        `data`, `settings`, one row per model in `models`, and with samples the `true_text` beside them.

    Raises:
        UserError: A model cannot be loaded, or the context length is longer than a model's.
    """
    from ..loading import load_for_inference
    from ..training.evaluation import confidence_interval, vocabulary

    rows: list[dict[str, Any]] = []
    losses: list[np.ndarray] = []
    true_texts: list[list[str]] = []
    for name in models:
        model, tokenizer = load_for_inference(name, settings.device, dtype="float32")
        report(f"evaluating {name} ...")
        ids, data, training_text = splits(tokenizer)
        row, scores = evaluate_predictions(model, ids, data, settings)
        # Models with the same tokens are compared token by token, which removes the variance of the text itself.
        if losses and len(scores.losses) == len(losses[0]):
            difference = scores.losses - losses[0]
            row["difference"] = float(difference.mean(dtype="float64"))
            row["difference_interval"] = confidence_interval(difference)
        losses.append(scores.losses)
        if settings.num_samples:
            known = vocabulary(training_text)
            texts, references = continuations(model, tokenizer, ids, row["context_length"], settings)
            row |= evaluate_texts(texts, references, known, training_text)
            true_texts.append(references)
        rows.append({"model": Path(name).resolve().name if Path(name).is_dir() else name, **row})
    evaluation = {
        "data": {key: data[key] for key in ("name", "sha256", "validation_characters")},
        "settings": {key: getattr(settings, key) for key in ("num_samples", "max_new_tokens", "temperature", "seed")},
        "models": rows,
    }
    if settings.num_samples:
        evaluation["true_text"] = evaluate_texts(true_texts[0], None, known, training_text)
    return evaluation


def evaluate_predictions(model, ids, data: dict[str, Any], settings: EvaluationSettings):
    """The model's predictions for the validation ids: a row of the table, and the score of every token."""
    from ..data.windows import EvaluationWindows
    from ..training import evaluation, metrics

    longest = model.config.max_position_embeddings
    context = settings.context_length or longest
    if not 1 <= context <= longest:
        raise UserError(
            f"--context_length must lie between 1 and the model's context length of {longest}, got {context}"
        )
    scores = evaluation.score_tokens(model, EvaluationWindows(ids, context), settings.batch_size)
    loss = float(scores.losses.mean(dtype="float64"))
    return {
        "parameters": model.num_parameters(),
        "context_length": context,
        "loss": loss,
        "loss_interval": evaluation.confidence_interval(scores.losses),
        "perplexity": metrics.perplexity(loss),
        "bits_per_character": metrics.bits_per_character(loss, len(scores.losses), data["validation_characters"]),
        "calibration_error": evaluation.expected_calibration_error(scores.confidences, scores.hits),
    }, scores


def continuations(model, tokenizer, ids, context: int, settings: EvaluationSettings) -> tuple[list[str], list[str]]:
    """What the model generates at evenly spaced places, and the true text there."""
    import transformers

    from .. import GPTLiteForCausalLM
    from ..training.evaluation import write_continuations

    prompt_tokens = max(context // 2, 1)
    slides = isinstance(model, GPTLiteForCausalLM)  # other classes end at their context length
    length = settings.max_new_tokens if slides else min(settings.max_new_tokens, context - prompt_tokens)
    transformers.set_seed(settings.seed)
    count, temperature = settings.num_samples, settings.temperature
    return write_continuations(model, tokenizer, ids, count, prompt_tokens, length, temperature)


def evaluate_texts(texts: list[str], references: list[str] | None, known: set[str], training_text) -> dict[str, Any]:
    """Generated texts compared with the true continuations (if given) and with the training split."""
    from ..training import evaluation

    passages = [evaluation.whole_words(text) for text in texts]
    copy = evaluation.longest_copy(texts, training_text)
    return {
        **(evaluation.similarity(texts, references) if references else {}),
        "distinct_1": evaluation.distinct(passages, 1),
        "distinct_2": evaluation.distinct(passages, 2),
        "known_words": evaluation.known_words(passages, known),
        "longest_copy": len(copy),
        "longest_copy_text": copy,
    }


# ---- Results -------------------------------------------------------------------------------------------------------

ROWS = {
    "parameters": ("parameters", "{:,}"),
    "validation loss (nats per token)": ("loss", "{:.4f}"),
    "  95 % interval": ("loss_interval", "{0[0]:.4f} to {0[1]:.4f}"),
    "  difference to the first model": ("difference", "{:+.4f}"),
    "  95 % interval of the difference": ("difference_interval", "{0[0]:+.4f} to {0[1]:+.4f}"),
    "perplexity (per token)": ("perplexity", "{:.3f}"),
    "bits per character": ("bits_per_character", "{:.4f}"),
    "calibration error": ("calibration_error", "{:.4f}"),
    "BLEU (characters)": ("bleu", "{:.2f}"),
    "chrF": ("chrf", "{:.2f}"),
    "distinct words": ("distinct_1", "{:.1%}"),
    "distinct pairs of words": ("distinct_2", "{:.1%}"),
    "words that the training text has": ("known_words", "{:.1%}"),
    "longest copy from it (characters)": ("longest_copy", "{:,}"),
}


def table(evaluation: dict[str, Any]) -> str:
    """An evaluation as text: results by row, models by column, the true text in the last one."""
    columns = list(evaluation["models"])
    if "true_text" in evaluation:
        columns.append({"model": "true text", **evaluation["true_text"]})
    grid = [["", *(column["model"] for column in columns)]]
    for label, (key, form) in ROWS.items():
        if any(key in column for column in columns):
            grid.append([label, *(form.format(column[key]) if key in column else "" for column in columns)])
    widths = [max(map(len, cells)) for cells in zip(*grid, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in grid]
    data, first = evaluation["data"], evaluation["models"][0]
    head = f"\n{data['name']}, the last {data['validation_characters']:,} characters\n"
    signatures = [f"{name}: {first[f'{name}_signature']}" for name in ("bleu", "chrf") if name in first]
    return "\n".join([head, *lines, "", *signatures])


def write_card(folder: Path, evaluation: dict[str, Any]) -> None:
    """Add the results to the record and the card of a trained model; a push publishes them from there."""
    from .card import render_card
    from .record import write_run

    record = read_record(str(folder)) | {"evaluation": evaluation}
    write_run(folder, record)
    (folder / "README.md").write_text(render_card(record, folder.resolve().name, folder=folder), encoding="utf-8")
