"""Publish a saved model on the Hugging Face Hub: one commit, with its card, and no more than it needs to load.

python -m scripts.push_to_hub --model out/quickstart --repo_id USER/NAME --dry_run
python -m scripts.push_to_hub --model out/quickstart --repo_id USER/NAME --tag v1 --space USER/NAME-demo
"""

import json
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from scripts.cli import Parser, UserError, accept_older_transformers, load_pretrained, run


CARD_TEMPLATE = Path(__file__).parent.parent / "model_card.md"
DEMO = Path(__file__).parent / "demo.py"


@dataclass
class PushArguments:
    """What to publish, and where."""

    model: str = field(metadata={"help": "Folder of the model, as training or save_pretrained leaves it."})
    repo_id: str = field(metadata={"help": "Name on the Hub: USER/NAME."})
    private: bool = field(default=False, metadata={"help": "Make a new repository private."})
    revision: str | None = field(default=None, metadata={"help": "Branch to commit to; made if it is not there."})
    tag: str | None = field(default=None, metadata={"help": "Tag for the commit, v1 for example."})
    create_pr: bool = field(default=False, metadata={"help": "Open a pull request instead of committing."})
    dry_run: bool = field(default=False, metadata={"help": "List what would be published, and do nothing."})
    published_as: str = field(
        default="gptlite",
        metadata={
            "aliases": ["--as"],
            "help": "gptlite, with its code; or native: transformers' own Qwen3 or GPT-2 class, without remote code.",
        },
    )
    space: str | None = field(default=None, metadata={"help": "Also publish a demo page under this name."})
    verbose: bool = field(default=False, metadata={"help": "List the files before they go."})


def main(argv: list[str] | None = None):
    (args,) = Parser((PushArguments,), __doc__).parse(argv)

    import huggingface_hub
    import transformers

    from modeling_gptlite.training.hub import HubError

    transformers.utils.logging.disable_progress_bar()
    huggingface_hub.utils.logging.set_verbosity_error()  # its retries; what counts is said here
    try:
        check(args)
        with tempfile.TemporaryDirectory() as staged:
            stage(args, Path(staged))
            push(args, Path(staged))
    except HubError as error:
        raise UserError(error) from error


def check(args: PushArguments) -> None:
    from huggingface_hub.utils import validate_repo_id

    from modeling_gptlite.training.hub import ADAPTER_CONFIG, hub_errors

    if args.published_as not in ("gptlite", "native"):
        raise UserError(f"--as must be gptlite or native, got {args.published_as!r}")
    is_adapter = (Path(args.model) / ADAPTER_CONFIG).is_file()
    if not is_adapter and not (Path(args.model) / "config.json").is_file():
        raise UserError(f"{args.model} is not the folder of a model: it has no config.json")
    if is_adapter and args.published_as == "native":
        raise UserError(f"{args.model} is a LoRA adapter; merge it into its model to publish that as native")
    for repo_id in filter(None, (args.repo_id, args.space)):
        with hub_errors(repo_id):
            validate_repo_id(repo_id)


def stage(args: PushArguments, folder: Path) -> None:
    """Put the files that the Hub gets into `folder`."""
    from modeling_gptlite.training.hub import published_files
    from modeling_gptlite.training.report import RUN_FILE, plain_card, render_card

    source, native = Path(args.model), args.published_as == "native"
    if native:
        save_native(source, folder)
    for name, path in published_files(source).items():
        belongs_to_gptlite = path.suffix in (".safetensors", ".py") or name.endswith(".index.json")
        if not native or not (belongs_to_gptlite or (folder / name).exists()):
            shutil.copyfile(path, folder / name)
    accept_older_transformers(folder)
    if (source / RUN_FILE).exists():
        try:
            record = json.loads((source / RUN_FILE).read_text(encoding="utf-8"))
            card = render_card(CARD_TEMPLATE, record, args.repo_id, native)
        except (KeyError, ValueError) as error:
            raise UserError(f"{source / RUN_FILE} is not the record of a run: {error!r}; delete or mend it") from error
    elif (source / "README.md").exists():
        return
    else:
        card = plain_card(args.repo_id, native)
    (folder / "README.md").write_text(card, encoding="utf-8")


def save_native(source: Path, folder: Path) -> None:
    """Convert the model; the loss of the native class is that of the original, by equal logits."""
    from modeling_gptlite import GPTLiteForCausalLM
    from modeling_gptlite.conversion import ConversionError, to_native

    model, tokenizer = load_pretrained(str(source))
    if not isinstance(model, GPTLiteForCausalLM):
        raise UserError(f"{source} holds a {type(model).__name__}, which is native already; push it without --as")
    try:
        to_native(model).save_pretrained(folder)
    except ConversionError as error:
        raise UserError(f"cannot publish {source} as native: {error}") from error
    tokenizer.save_pretrained(folder)


def push(args: PushArguments, folder: Path) -> None:
    from modeling_gptlite.training import hub

    if args.dry_run or args.verbose:
        files = hub.published_files(folder)
        for name, path in files.items():
            print(f"{path.stat().st_size:>12,}  {name}")
        print(f"{sum(path.stat().st_size for path in files.values()):>12,}  bytes in {len(files)} files")
    if args.dry_run:
        return
    commit = hub.push_folder(
        folder,
        args.repo_id,
        private=args.private or None,
        revision=args.revision,
        create_pr=args.create_pr,
    )
    if args.tag:
        hub.tag_commit(args.repo_id, args.tag, commit.pr_revision or commit.oid)
    print(f"published: {commit.pr_url or commit.commit_url}")
    if args.space:
        url = hub.push_space(args.space, args.repo_id, DEMO, private=args.private or None)
        print(f"the demo's page: {url}")


if __name__ == "__main__":
    run(main)
