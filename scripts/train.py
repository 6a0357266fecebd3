"""Train or fine-tune a causal language model with the Hugging Face Trainer.

gptlite train --config quickstart
gptlite train --config quickstart --train_file my_book.txt --output_dir out/my_book
gptlite train --preset modern-10m --train_file my_book.txt --max_steps 1000
"""

import transformers

from modeling_gptlite.runs import settings
from modeling_gptlite.runs.train import Interrupted, start
from modeling_gptlite.training.callbacks import say

from .cli import run, shown
from .parser import Parser
from .train_flags import GROUPS, SHORT_HELP


def main(argv: list[str] | None = None):
    parser = Parser(settings.GROUPS, __doc__, GROUPS, SHORT_HELP)
    given = parser.settings(argv)
    transformers.utils.logging.disable_progress_bar()  # training has a progress line of its own
    try:
        start(given, log=lambda line: say(shown(line))).train()
    except Interrupted as stop:
        say(shown(str(stop)))
        raise SystemExit(128 + stop.signal) from None


if __name__ == "__main__":
    run(main)
