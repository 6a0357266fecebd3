"""Evaluating saved models on the same text: loss and its uncertainty, calibration, and the text that they generate.

source = open_source(SourceArguments(train_file=["my_book.txt"]))
evaluation = evaluate_models(["out/quickstart", "out/tuned"], source, EvaluationSettings(num_samples=16))
print(table(evaluation))
"""

import dataclasses
import json
import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from .. import GPTLiteForCausalLM
from ..data.encode import EncodedText, encode_text
from ..data.sources import SOURCES, Source, SourceArguments, open_source
from ..data.windows import EvaluationWindows
from ..decoding import SAMPLING
from ..errors import UserError, check, setting
from ..loading import check_folder, load_for_inference, load_tokenizer
from ..runs.card import render_card
from ..runs.record import RUN_FILE, RecordError, plain, read_run, write_run
from ..training import metrics
from ..training.hardware import LARGE, inference_precision
from . import statistics


@dataclass
class EvaluationSettings:
    """How to evaluate."""

    num_samples: int = setting(64, "Places in the validation split that each model continues; 0: none.")
    max_new_tokens: int = setting(256, "Tokens in each continuation.")
    temperature: float = setting(
        SAMPLING["temperature"], "Of the continuations. Below 1: more predictable; above 1: more random."
    )
    context_length: int | None = setting(
        None, "Tokens per window. Default: those of each model's training, else its maximum."
    )
    batch_size: int = setting(64, "Windows per batch.")
    seed: int = setting(0, "Of the continuations.")
    device: str | None = setting(None, "cpu, cuda, mps, ... Default: the fastest available.")


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


def evaluate(
    models: list[str],
    source_args: SourceArguments,
    settings: EvaluationSettings,
    *,
    given: Collection[str] = (),
    output: str | None = None,
    card: bool = False,
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Evaluate models, report the table, and write the results.

    Args:
        source_args: The text. If it names none: the text that the first model was trained on.
        given: Names of the source arguments that win over those in that model's record.
        output: A JSON file for the results.
        card: Add the results to the record and the model card of the only model.

    Returns:
        What `evaluate_models` returns.

    Raises:
        UserError: A setting is out of range, the text is not known, or the results cannot be written there.
    """
    check_settings(settings)
    if card and len(models) > 1:
        raise UserError("--card writes to one model's folder; give one --model")
    if card:
        render_card(read_run(Path(models[0])), models[0])  # a damaged record is found now, not after the evaluation
    if output and not Path(output).resolve().parent.is_dir():
        raise UserError(f"no such folder: {Path(output).parent}")
    if source_args.train_file or source_args.dataset:
        source_args = read_as_trained(models[0], source_args, given, report)
    else:
        source_args = source_of_run(models[0], source_args, given)
    source = open_source(source_args)
    evaluation = evaluate_models(models, source, settings, source_args.validation_fraction, report)
    report(table(evaluation))
    try:
        if output:
            text = json.dumps(plain(evaluation), indent=2, ensure_ascii=False, allow_nan=False)
            Path(output).write_text(text + "\n", encoding="utf-8")
        if card:
            write_card(Path(models[0]), evaluation)
    except OSError as error:
        raise OSError(f"cannot write the results: {error}") from error
    return evaluation


def source_of_run(model: str, source_args: SourceArguments, given: Collection[str] = ()) -> SourceArguments:
    """`source_args` with what `run.json` says about the text of `model`, but for the arguments in `given`.

    Raises:
        UserError: There is no such record, or it does not say where that text is: it was a file.
    """
    try:
        record = read_run(Path(model))
        arguments, name, hub_dataset = record["arguments"], record["data"]["name"], record["data"].get("hub_dataset")
    except (RecordError, KeyError, TypeError) as error:
        reason = error if isinstance(error, RecordError) else f"{model}/run.json is not the record of a run: {error!r}"
        raise UserError(f"{reason}; name the text to evaluate on with --dataset or --train_file") from error
    if not (hub_dataset or name in SOURCES):
        raise UserError(f"{model} was trained on {name}: say where that is with --train_file or --dataset")
    recorded = {**arguments, "train_file": None, "dataset": hub_dataset or name}
    if not hub_dataset:  # a built-in text has no columns
        recorded |= {"text_column": None, "dataset_config": None, "streaming": False}
    names = {field.name for field in dataclasses.fields(source_args)} - set(given)
    return dataclasses.replace(source_args, **{name: recorded[name] for name in names & recorded.keys()})


def read_as_trained(
    model: str, source_args: SourceArguments, given: Collection[str], report: Callable[[str], None]
) -> SourceArguments:
    """`source_args`, and if `model` was trained on the text that they name, divided and read as it was then.

    Otherwise the end of the text, which is evaluated, could be one that was trained on.
    """
    try:
        record = read_run(Path(model))
        arguments = record["arguments"]
        named: Any = [Path(path).name for path in source_args.train_file or ()]
        if (dataset := source_args.dataset) is not None:
            named = Path(dataset).resolve().name if Path(dataset).is_dir() else dataset
        if named not in (record["data"]["name"], arguments.get("dataset"), arguments.get("train_file")):
            return source_args
    except (RecordError, KeyError, TypeError, AttributeError):
        return source_args
    names = {"documents", "encoding", "text_column", "dataset_config", "validation_fraction"} - set(given)
    recorded = {name: arguments[name] for name in sorted(names & arguments.keys())}
    if recorded:
        report(f"read as in its training: {', '.join(f'{name} {value}' for name, value in recorded.items())}")
    return dataclasses.replace(source_args, **recorded)


# ---- Evaluation ----------------------------------------------------------------------------------------------------


def evaluate_models(
    models: list[str],
    source: Source,
    settings: EvaluationSettings,
    validation_fraction: float = 0.1,
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Evaluate models on the same validation split, which training never reads.

    Args:
        models: Folders, or repository ids on the Hub.
        source: The text.
        validation_fraction: Fraction of the text, at its end, that validates.
        report: Called with a line of progress per model, and with remarks about the text.

    Returns:
        `data`, `settings`, one row per model in `models`, and with samples the `true_text` beside them.

    Raises:
        UserError: A model cannot be loaded, or the context length is longer than a model's.
    """
    for name in models:
        check_folder(name)
    splits = [encode_text(source, load_tokenizer(name), validation_fraction, report) for name in models]
    data, training_text = splits[0].facts, splits[0].training_text
    known = statistics.vocabulary(training_text) if settings.num_samples else set()
    rows: list[dict[str, Any]] = []
    losses: list[np.ndarray] = []
    true_texts: list[list[str]] = []
    for name, split in zip(models, splits, strict=True):
        model, tokenizer = load_for_inference(name, settings.device, dtype="float32")
        report(f"evaluating {name} ...")
        row, scores = evaluate_predictions(model, split, settings, trained_context(name))
        # Models with the same tokens are compared token by token, which removes the variance of the text itself.
        if losses and np.array_equal(split.validation_ids, splits[0].validation_ids):
            difference = scores.losses - losses[0]
            row["difference"] = float(difference.mean(dtype="float64"))
            row["difference_interval"] = statistics.confidence_interval(difference)
        losses.append(scores.losses)
        if settings.num_samples:
            texts, references = continuations(model, tokenizer, split.validation_ids, row["context_length"], settings)
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


def trained_context(name: str) -> int | None:
    """The context length that a model was trained with, if its folder has the record of that."""
    if not (Path(name) / RUN_FILE).exists():
        return None
    data = read_run(Path(name)).get("data")
    context = data.get("context_length") if isinstance(data, dict) else None
    return context if isinstance(context, int) else None


def evaluate_predictions(
    model, split: EncodedText, settings: EvaluationSettings, trained: int | None = None
) -> tuple[dict[str, Any], statistics.TokenScores]:
    """The model's predictions for the validation ids: a row of the table, and the score of every token.

    Args:
        trained: The context length unless the settings have one; None for the model's maximum.
    """
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None) or math.inf
    context = settings.context_length or min(trained or longest, longest)
    if context == math.inf:
        raise UserError("the model has no longest context: give --context_length")
    if not 1 <= context <= longest:
        raise UserError(
            f"--context_length must lie between 1 and the model's context length of {longest}, got {context}"
        )
    context = int(context)
    width = min(context, max(len(split.validation_ids) - 1, 1))  # the rest of a longer window would be padding
    windows = EvaluationWindows(split.validation_ids, width, split.begin)
    precision = inference_precision(model)
    size = fitting_batch(model, width, settings.batch_size)
    with torch.autocast(model.device.type, torch.bfloat16, enabled=precision == "bf16"):
        scores = statistics.score_tokens(model, windows, size)
    loss, characters = float(scores.losses.mean(dtype="float64")), split.facts["validation_characters"]
    return {
        "parameters": model.num_parameters(),
        "context_length": context,
        "precision": precision,
        "loss": loss,
        "loss_interval": statistics.confidence_interval(scores.losses),
        "perplexity": metrics.perplexity(loss),
        "bits_per_character": metrics.bits_per_character(loss, len(scores.losses), characters),
        "calibration_error": statistics.expected_calibration_error(scores.confidences, scores.hits),
    }, scores


def fitting_batch(model, tokens: int, most: int) -> int:
    """Texts of this many tokens that a model reads at the same time: fewer if it is large, for their memory."""
    return most if model.num_parameters() < LARGE else max(1, min(most, 4096 // tokens))


def continuations(model, tokenizer, ids, context: int, settings: EvaluationSettings) -> tuple[list[str], list[str]]:
    """What the model generates at evenly spaced places, and the true text there."""
    prompt_tokens = max(context // 2, 1)
    slides = isinstance(model, GPTLiteForCausalLM)  # other classes end at their context length
    length = settings.max_new_tokens if slides else min(settings.max_new_tokens, context - prompt_tokens)
    transformers.set_seed(settings.seed)
    count, temperature = settings.num_samples, settings.temperature
    size = fitting_batch(model, prompt_tokens + length, count)
    return statistics.write_continuations(model, tokenizer, ids, count, prompt_tokens, length, temperature, size)


def evaluate_texts(
    texts: list[str], references: list[str] | None, known: set[str], training_text: Iterable[str]
) -> dict[str, Any]:
    """Generated texts compared with the true continuations (if given) and with the training split."""
    passages = [statistics.whole_words(text) for text in texts]
    copy = statistics.longest_copy(texts, training_text)
    return {
        **(statistics.similarity(texts, references) if references else {}),
        "distinct_1": statistics.distinct(passages, 1),
        "distinct_2": statistics.distinct(passages, 2),
        "known_words": statistics.known_words(passages, known),
        "longest_copy": len(copy),
        "longest_copy_text": copy,
    }


# ---- Results -------------------------------------------------------------------------------------------------------

ROWS = {  # docs/training.md explains these rows, and the model card has the same words
    "parameters": ("parameters", "{:,}"),
    "context length (tokens)": ("context_length", "{:,}"),
    "precision": ("precision", "{}"),
    "validation loss (nats per token)": ("loss", "{:.4f}"),
    "95 % interval of the loss": ("loss_interval", "{0[0]:.4f} to {0[1]:.4f}"),
    "difference to the first model": ("difference", "{:+.4f}"),
    "95 % interval of the difference": ("difference_interval", "{0[0]:+.4f} to {0[1]:+.4f}"),
    "perplexity (per token)": ("perplexity", "{:.3f}"),
    "bits per character": ("bits_per_character", "{:.4f}"),
    "expected calibration error": ("calibration_error", "{:.4f}"),
    "BLEU (characters)": ("bleu", "{:.2f}"),
    "chrF": ("chrf", "{:.2f}"),
    "distinct words": ("distinct_1", "{:.1%}"),
    "distinct pairs of words": ("distinct_2", "{:.1%}"),
    "words known from the training text": ("known_words", "{:.1%}"),
    "longest copy (characters)": ("longest_copy", "{:,}"),
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
    record = read_run(folder) | {"evaluation": evaluation}
    write_run(folder, record)
    (folder / "README.md").write_text(render_card(record, folder.resolve().name, folder=folder), encoding="utf-8")
