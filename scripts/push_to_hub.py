"""Publish a saved model on the Hugging Face Hub in one commit: what is needed to load it, and its card.

gptlite push --model out/quickstart --repo_id USER/NAME --dry_run
gptlite push --model out/quickstart --repo_id USER/NAME --tag v1 --space USER/NAME-demo
gptlite push --model out/quickstart --repo_id USER/NAME --space USER/NAME-page --space_sdk static
"""

from dataclasses import dataclass
from pathlib import Path

from modeling_gptlite.errors import UserError, setting
from modeling_gptlite.files import UserPath

from .cli import run
from .parser import Parser


@dataclass
class PushArguments:
    """What to publish, and where."""

    model: UserPath = setting(help="Folder of the model, as training or save_pretrained writes it.")
    repo_id: str = setting(help="Name on the Hub: USER/NAME.")
    private: bool = setting(False, "Create a new repository as private.")
    revision: str | None = setting(None, "Branch to commit to; created if it does not exist.")
    tag: str | None = setting(None, "Tag for the commit, v1 for example.")
    create_pr: bool = setting(False, "Open a pull request instead of committing.")
    dry_run: bool = setting(False, "List what would be published, and upload nothing.")
    published_as: str = setting(
        "gptlite",
        "gptlite, with its code; native: transformers' own class (Qwen3, Llama, GPT-2), no remote code; "
        "gguf: float32, float16 and 8-bit files for Ollama and llama.cpp.",
        aliases=["--as"],
    )
    space: str | None = setting(None, "Also publish a demo page as a Space of this name.")
    space_sdk: str = setting(
        "gradio",
        "How the Space runs the model: gradio, on its server; or static, in the visitor's browser.",
        choices=["gradio", "static"],
    )
    verbose: bool = setting(False, "List the files before they are uploaded.")


def main(argv: list[str] | None = None):
    (args,) = Parser((PushArguments,), __doc__).parse(argv)

    import huggingface_hub
    import transformers

    from modeling_gptlite.page.space import space_files
    from modeling_gptlite.runs import publish

    transformers.utils.logging.disable_progress_bar()
    huggingface_hub.utils.logging.set_verbosity_error()  # its retries; failures are reported here
    model, private = Path(args.model), args.private or None
    if args.space:
        publish.check_repo_id(args.space)
    elif args.space_sdk != "gradio":
        raise UserError("--space_sdk goes with --space USER/NAME")
    loads_from_hub = args.space and args.space_sdk == "gradio"
    if loads_from_hub and (args.published_as == "gguf" or args.revision not in (None, "main") or args.create_pr):
        raise UserError(
            f"the Space would load {args.repo_id} from its main branch, where this push puts no such model; "
            "--space_sdk static makes one that holds the model"
        )
    if args.dry_run:
        with publish.staged(model, args.repo_id, args.published_as) as folder:
            print(publish.list_files(folder))
        return
    page = space_files(args.space_sdk, model, args.repo_id) if args.space else {}  # before anything is uploaded
    commit = publish.publish(
        model,
        args.repo_id,
        args.published_as,
        private=private,
        revision=args.revision,
        create_pr=args.create_pr,
        tag=args.tag,
        report=print if args.verbose else None,
    )
    print(f"published: {commit.pr_url or commit.commit_url}")
    if args.space:
        print(f"the demo's page: {publish.push_space(args.space, page, args.space_sdk, private)}")


if __name__ == "__main__":
    run(main)
