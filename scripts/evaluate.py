"""Evaluate saved models: loss and its uncertainty, calibration, and what they write beside the true text.

python -m scripts.evaluate --model out/quickstart
python -m scripts.evaluate --model out/quickstart out/tuned --train_file my_book.txt --output evaluation.json

Every model continues the same places of the validation split, which training never reads.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.cli import Parser, SourceArguments, UserError, encode_splits, load_pretrained, load_source, run


CARD_TEMPLATE = Path(__file__).parent.parent / "model_card.md"


@dataclass
class EvaluateArguments:
    """What to evaluate, and where the results go."""

    model: list[str] = field(metadata={"help": "Folders or Hub names of models to compare.", "nargs": "+"})
    output: str | None = field(default=None, metadata={"help": "Write the results to this JSON file."})
    card: bool = field(
        default=False, metadata={"help": "Write the results into the folder's run.json and its card, too."}
    )
    num_samples: int = field(
        default=64, metadata={"help": "Places of the validation split that each model continues; 0 for none."}
    )
    max_new_tokens: int = field(default=256, metadata={"help": "Tokens of each continuation."})
    temperature: float = field(default=0.8, metadata={"help": "Of the continuations; below 1 safer, above 1 wilder."})
    context_length: int | None = field(
        default=None, metadata={"help": "Tokens per window. Default: each model's context."}
    )
    batch_size: int = field(default=64, metadata={"help": "Windows per batch."})
    seed: int = field(default=0, metadata={"help": "Of the continuations."})
    device: str | None = field(default=None, metadata={"help": "cpu, cuda, mps, ... Default: the fastest there is."})


@dataclass
class EvaluationSource(SourceArguments):
    """The text. Its last part is evaluated; what the models write is compared with the part before."""

    dataset: str | None = field(
        default=None,
        metadata={
            "help": "Built in: auto, tinyshakespeare or python-docs; otherwise a data set's Hub name or local folder. "
            "Default: what the first model was trained on."
        },
    )


def main(argv: list[str] | None = None):
    from modeling_gptlite.training.data import DataError

    parser = Parser((EvaluateArguments, EvaluationSource), __doc__)
    args, source_args = parser.parse(argv)
    check(args)
    if not (source_args.train_file or source_args.dataset):
        source_args = source_of_run(args.model[0], source_args, parser.given)
    try:
        evaluation = evaluate(args, source_args)
    except DataError as error:
        raise UserError(error) from error
    print(table(evaluation))
    if args.output:
        write(Path(args.output), json.dumps(evaluation, indent=2, ensure_ascii=False) + "\n")
    if args.card:
        write_card(Path(args.model[0]), evaluation)


# ---- Before ---------------------------------------------------------------------------------------------------------


def check(args: EvaluateArguments) -> None:
    rules = [
        ("num_samples", args.num_samples >= 0, "0 (none) or more"),
        ("max_new_tokens", args.max_new_tokens >= 1, "at least 1"),
        ("temperature", args.temperature > 0, "above 0"),
        ("batch_size", args.batch_size >= 1, "at least 1"),
    ]
    for name, is_right, allowed in rules:
        if not is_right:
            raise UserError(f"--{name} must be {allowed}, got {getattr(args, name)}")
    if args.card:
        if len(args.model) > 1:
            raise UserError("--card writes into one model's folder; give one --model")
        read_run(args.model[0])
    if args.output and not Path(args.output).resolve().parent.is_dir():
        raise UserError(f"no such folder: {Path(args.output).parent}")
    if args.num_samples:
        try:
            import sacrebleu  # noqa: F401
        except ImportError as error:
            raise UserError("BLEU needs sacrebleu: pip install 'gptlite[eval]', or --num_samples 0") from error


def read_run(model: str) -> dict[str, Any]:
    from modeling_gptlite.training.report import RUN_FILE

    path = Path(model) / RUN_FILE
    if not path.is_file():
        raise UserError(f"{model} has no {RUN_FILE}: say with --dataset or --train_file which text to evaluate on")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        record["data"]["name"], record["arguments"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not the record of a run: {error!r}") from error
    return record


def source_of_run(model: str, source_args: EvaluationSource, given: dict[str, Any]) -> EvaluationSource:
    """What the model was trained on, as its `run.json` tells; flags that were given win."""
    from modeling_gptlite.training.data import BUILT_IN_SOURCES

    record = read_run(model)
    name = record["data"].get("hub_dataset") or record["data"]["name"]
    if not (record["data"].get("hub_dataset") or name in BUILT_IN_SOURCES):
        raise UserError(f"{model} was trained on {name}: say where that is with --train_file or --dataset")
    names = {field.name for field in dataclasses.fields(source_args)} - {"train_file", "dataset"}
    recorded = {key: value for key, value in record["arguments"].items() if key in names and key not in given}
    return dataclasses.replace(source_args, dataset=name, **recorded)


# ---- Evaluation ----------------------------------------------------------------------------------------------------


def evaluate(args: EvaluateArguments, source_args: SourceArguments) -> dict[str, Any]:
    """All results, as `--output` writes them."""
    import transformers

    from modeling_gptlite.training.data import split_source
    from modeling_gptlite.training.evaluation import confidence_interval, vocabulary
    from modeling_gptlite.training.examples import ExampleSource

    transformers.utils.logging.disable_progress_bar()
    source = load_source(source_args)
    if isinstance(source, ExampleSource):
        raise UserError(f"{source.name} holds examples; models are evaluated on text, for example --text_column=prompt")
    rows, losses, true_texts = [], [], []
    for name in args.model:
        model, tokenizer = load(name, args.device)
        print(f"evaluating {name} ...", flush=True)
        training_text, _ = split_source(source, tokenizer.eos_token or "", source_args.validation_fraction)
        _, ids, data = encode_splits(source, tokenizer, source_args.validation_fraction)
        row, scores = evaluate_predictions(model, ids, data, args)
        # Models with the same tokens are compared token by token, which takes out how hard the text is.
        if losses and len(scores.losses) == len(losses[0]):
            difference = scores.losses - losses[0]
            row["difference"] = float(difference.mean(dtype="float64"))
            row["difference_interval"] = confidence_interval(difference)
        losses.append(scores.losses)
        if args.num_samples:
            known = vocabulary(training_text)
            texts, references = continuations(model, tokenizer, ids, row["context_length"], args)
            row |= evaluate_texts(texts, references, known, training_text)
            true_texts.append(references)
        rows.append({"model": Path(name).resolve().name if Path(name).is_dir() else name, **row})
    evaluation = {
        "data": {key: data[key] for key in ("name", "sha256", "validation_characters")},
        "settings": {key: getattr(args, key) for key in ("num_samples", "max_new_tokens", "temperature", "seed")},
        "models": rows,
    }
    if args.num_samples:
        evaluation["true_text"] = evaluate_texts(true_texts[0], None, known, training_text)
    return evaluation


def load(name: str, device: str | None):
    import torch

    model, tokenizer = load_pretrained(name, dtype="float32")
    device = device or (torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu")
    try:
        return model.to(device).eval(), tokenizer
    except RuntimeError as error:
        raise UserError(f"--device {device}: {error}") from error


def evaluate_predictions(model, ids, data: dict[str, Any], args: EvaluateArguments):
    """What the model says of the true text, and the scores of its tokens."""
    from modeling_gptlite.training import evaluation, metrics
    from modeling_gptlite.training.data import EvaluationWindows

    longest = model.config.max_position_embeddings
    context = args.context_length or longest
    if not 1 <= context <= longest:
        raise UserError(f"--context_length must lie between 1 and the model's context of {longest}, got {context}")
    scores = evaluation.score_tokens(model, EvaluationWindows(ids, context), args.batch_size)
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


def continuations(model, tokenizer, ids, context: int, args: EvaluateArguments) -> tuple[list[str], list[str]]:
    import transformers

    from modeling_gptlite import GPTLiteForCausalLM
    from modeling_gptlite.training.evaluation import write_continuations

    prompt_tokens = max(context // 2, 1)
    slides = isinstance(model, GPTLiteForCausalLM)  # others end, or ramble, where their context does
    length = args.max_new_tokens if slides else min(args.max_new_tokens, context - prompt_tokens)
    transformers.set_seed(args.seed)
    return write_continuations(model, tokenizer, ids, args.num_samples, prompt_tokens, length, args.temperature)


def evaluate_texts(texts: list[str], references: list[str] | None, known: set[str], training_text) -> dict[str, Any]:
    """What the model writes, beside the true text (if it is not that itself) and the training split."""
    from modeling_gptlite.training import evaluation

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


# ---- After ---------------------------------------------------------------------------------------------------------

ROWS = {
    "parameters": ("parameters", "{:,}"),
    "validation loss (nats per token)": ("loss", "{:.4f}"),
    "  95 % interval": ("loss_interval", "{0[0]:.4f} to {0[1]:.4f}"),
    "  more than the first model's": ("difference", "{:+.4f}"),
    "  95 % interval of that": ("difference_interval", "{0[0]:+.4f} to {0[1]:+.4f}"),
    "perplexity (per token)": ("perplexity", "{:.3f}"),
    "bits per character": ("bits_per_character", "{:.4f}"),
    "calibration error": ("calibration_error", "{:.4f}"),
    "BLEU (characters)": ("bleu", "{:.2f}"),
    "chrF": ("chrf", "{:.2f}"),
    "different words": ("distinct_1", "{:.1%}"),
    "different pairs of words": ("distinct_2", "{:.1%}"),
    "words known from the training text": ("known_words", "{:.1%}"),
    "longest copy from it (characters)": ("longest_copy", "{:,}"),
}


def table(evaluation: dict[str, Any]) -> str:
    """Results by row, models by column, the true text beside them."""
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
    """Put the results into the folder's record and card; a push publishes them from there."""
    from modeling_gptlite.training.report import render_card, write_run

    record = read_run(str(folder)) | {"evaluation": evaluation}
    write_run(folder, record)
    write(folder / "README.md", render_card(CARD_TEMPLATE, record, folder.resolve().name))


def write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error


if __name__ == "__main__":
    run(main)
