"""Evaluate saved models: loss and its uncertainty, calibration, and what they generate compared with the true text.

gptlite evaluate --model out/quickstart
gptlite evaluate --model out/quickstart out/tuned --train_file my_book.txt --output evaluation.json

Every model continues the same places in the validation split, which training never reads.
"""

from dataclasses import dataclass

import transformers

from modeling_gptlite.data.sources import AUTO, SOURCES, SourceArguments
from modeling_gptlite.errors import setting
from modeling_gptlite.evaluation.evaluate import EvaluationSettings, evaluate
from modeling_gptlite.files import UserPath

from .cli import run
from .parser import Parser


@dataclass
class EvaluateArguments:
    """What to evaluate, and where the results go."""

    model: list[UserPath] = setting(help="Folders, or repository ids on the Hub, of models to compare.", nargs="+")
    output: UserPath | None = setting(None, "Write the results to this JSON file.")
    card: bool = setting(False, "Write the results to the model's run.json and model card as well.")


DATASET_HELP = (
    f"Built in: {', '.join([AUTO, *SOURCES])}; otherwise a dataset's Hub name or local folder. "
    "Default: the one of the first model's training."
)


def main(argv: list[str] | None = None) -> None:
    groups = (EvaluateArguments, SourceArguments, EvaluationSettings)
    parser = Parser(groups, __doc__, short_help={"dataset": DATASET_HELP})
    args, source_args, settings = parser.parse(argv)
    transformers.utils.logging.disable_progress_bar()
    evaluate(
        args.model,
        source_args,
        settings,
        given=parser.given,
        output=args.output,
        card=args.card,
        report=lambda line: print(line, flush=True),
    )


if __name__ == "__main__":
    run(main)
