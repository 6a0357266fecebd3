"""Evaluate saved models: loss and its uncertainty, calibration, and what they generate compared with the true text.

gptlite evaluate --model out/quickstart
gptlite evaluate --model out/quickstart out/tuned --train_file my_book.txt --output evaluation.json

Every model continues the same places in the validation split, which training never reads.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modeling_gptlite.data.sources import AUTO, SOURCES, SourceArguments

from .cli import run


@dataclass
class EvaluateArguments:
    """What to evaluate, and where the results go."""

    model: list[str] = field(
        metadata={"help": "Folders, or repository ids on the Hub, of models to compare.", "nargs": "+"}
    )
    output: str | None = field(default=None, metadata={"help": "Write the results to this JSON file."})
    card: bool = field(
        default=False, metadata={"help": "Write the results to the model's run.json and model card as well."}
    )


@dataclass
class EvaluationSource(SourceArguments):
    """The text. Its last part is evaluated; generated text is compared with the part before."""

    dataset: str | None = field(
        default=None,
        metadata={
            "help": f"Built in: {', '.join([AUTO, *SOURCES])}; otherwise a data set's Hub name or local folder. "
            "Default: what the first model was trained on."
        },
    )


def main(argv: list[str] | None = None):
    from modeling_gptlite.runs.evaluate import EvaluationSettings, check_settings, table, write_card
    from modeling_gptlite.runs.record import plain

    from .parser import Parser

    parser = Parser((EvaluateArguments, EvaluationSource, EvaluationSettings), __doc__)
    args, source_args, settings = parser.parse(argv)
    check_settings(settings)
    check(args)
    if not (source_args.train_file or source_args.dataset):
        source_args = source_of_run(args.model[0], source_args, parser.given)
    evaluation = evaluate(args.model, source_args, settings)
    print(table(evaluation))
    try:
        if args.output:
            text = json.dumps(plain(evaluation), indent=2, ensure_ascii=False, allow_nan=False)
            Path(args.output).write_text(text + "\n", encoding="utf-8")
        if args.card:
            write_card(Path(args.model[0]), evaluation)
    except OSError as error:
        raise OSError(f"cannot write the results: {error}") from error


def check(args: EvaluateArguments) -> None:
    from modeling_gptlite.errors import UserError
    from modeling_gptlite.runs.evaluate import read_record

    if args.card:
        if len(args.model) > 1:
            raise UserError("--card writes to one model's folder; give one --model")
        read_record(args.model[0])
    if args.output and not Path(args.output).resolve().parent.is_dir():
        raise UserError(f"no such folder: {Path(args.output).parent}")


def source_of_run(model: str, source_args: EvaluationSource, given: dict[str, Any]) -> EvaluationSource:
    """What the model was trained on, according to its `run.json`; flags that were given win."""
    from modeling_gptlite.runs.evaluate import recorded_source

    names = {field.name for field in dataclasses.fields(source_args)}
    recorded = {key: value for key, value in recorded_source(model).items() if key in names and key not in given}
    return dataclasses.replace(source_args, **recorded)


def evaluate(models: list[str], source_args: SourceArguments, settings) -> dict[str, Any]:
    """All results, as `--output` writes them."""
    import transformers

    from modeling_gptlite.data.prepare import encode_splits
    from modeling_gptlite.data.sources import open_source
    from modeling_gptlite.runs.evaluate import evaluate_models

    transformers.utils.logging.disable_progress_bar()
    source = open_source(source_args)

    def splits(tokenizer):
        encoded = encode_splits(source, tokenizer, source_args.validation_fraction)
        return encoded.validation_ids, encoded.facts, encoded.training_text

    return evaluate_models(models, splits, settings, report=lambda line: print(line, flush=True))


if __name__ == "__main__":
    run(main)
