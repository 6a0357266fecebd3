# /// script
# requires-python = ">=3.11"
# dependencies = ["gptlite @ git+https://github.com/USER/gptlite"]
# ///
r"""Train on a machine that is rented by the minute and thrown away: everything worth keeping is pushed to the Hub.

hf jobs uv run --flavor t4-small --timeout 30m --secrets HF_TOKEN \
    https://raw.githubusercontent.com/USER/gptlite/main/recipes/jobs/train.py \
    --train_file https://example.org/my_book.txt --push_to_hub USER/NAME --timeout 30

Other flags are those of `gptlite train`, each with one value.
"""

import sys
import tempfile
import urllib.request
from argparse import ArgumentParser
from pathlib import Path

from modeling_gptlite.errors import UserError
from modeling_gptlite.runs.train import start_from


RESERVED = 8  # minutes of the job for installing, before this script runs, and for the last upload after training


def settings_of(argv: list[str], folder: Path) -> dict:
    """The settings of the run.

    Args:
        folder: Where a text from the web is saved.
    """
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train_file", required=True, help="Address or path of a text.")
    parser.add_argument("--push_to_hub", required=True, metavar="USER/NAME", help="Repository of the model.")
    parser.add_argument(
        "--timeout", type=float, default=30, help="The job's timeout in minutes. Default: 30, the Hub's."
    )
    args, others = parser.parse_known_args(argv)
    if len(others) % 2 or not all(flag.startswith("--") for flag in others[::2]):
        parser.error(f"other flags must have the form --name value, got {' '.join(others)}")
    given = {flag[2:]: value for flag, value in zip(others[::2], others[1::2], strict=True)}
    if args.timeout <= RESERVED:
        parser.error(f"--timeout must be more than {RESERVED}: installing and uploading take some minutes")
    if args.train_file.startswith(("http://", "https://")):
        path = folder / args.train_file.split("?")[0].rsplit("/", 1)[-1]
        urllib.request.urlretrieve(args.train_file, path)
        args.train_file = str(path)
    push = {"push_to_hub": True, "hub_model_id": args.push_to_hub, "hub_strategy": "every_save"}
    budget = {} if given.keys() & {"minutes", "max_steps", "num_train_epochs"} else {"minutes": args.timeout - RESERVED}
    return {"train_file": args.train_file, "output_dir": "out/job", **push, **budget, **given}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            start_from(**settings_of(sys.argv[1:], Path(folder))).train()
        except (UserError, OSError) as error:
            sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
