"""A page to try a model: texts with the probability of each character, the alternatives to it, and the attention.

gptlite demo --model out/quickstart
gptlite demo --model out/quickstart/checkpoint-750 out/quickstart
gptlite demo --static out/page out/quickstart

Two models write side by side. A static page consists of plain files; the model runs in the visitor's browser.
"""

from dataclasses import dataclass
from pathlib import Path

from modeling_gptlite.errors import UserError, setting
from modeling_gptlite.files import UserPath

from .cli import run
from .parser import Parser


MOST_MODELS = 2


@dataclass
class DemoArguments:
    """The models, and where the page is served or written."""

    model: list[UserPath] = setting([], "Folder or Hub name of a model, or of two to compare.", nargs="+")
    static: UserPath | None = setting(
        None, "Write a page without a server into this new folder, instead of serving one with Gradio."
    )
    transformers_js: UserPath | None = setting(
        None,
        "For --static: a node_modules folder with @huggingface/transformers, which is copied, so that the "
        "page works offline. Default: the page loads the library from jsDelivr.",
    )
    host: str | None = setting(None, "Address to listen on. Default: $GRADIO_SERVER_NAME, else this machine only.")
    port: int | None = setting(None, "Port to listen on. Default: the first free one from 7860.")
    share: bool = setting(False, "Also give the page a public address, through Gradio.")
    trust_remote_code: bool = setting(False, "Run the code that comes with the model.")


def main(argv: list[str] | None = None):
    parser = Parser((DemoArguments,), __doc__)
    parser.add_argument("models", type=UserPath, metavar="MODEL", nargs="*", help="The same as --model.")
    args, rest = parser.parse(argv)
    names = [*args.model, *rest.models]
    most = 1 if args.static else MOST_MODELS
    if not 1 <= len(names) <= most:
        allowed = "one model" if args.static else "one model, or two to compare"
        raise UserError(
            f"the page takes {allowed}, got {len(names)}; name the folder of a model, such as out/quickstart"
        )
    if args.transformers_js and not args.static:
        raise UserError("--transformers_js goes with --static")
    if args.static:
        write_page(args, names[0])
    else:
        serve(args, names)


def write_page(args: DemoArguments, name: str) -> None:
    import transformers

    from modeling_gptlite.page.website import build_website

    transformers.utils.logging.disable_progress_bar()
    folder = Path(args.static or "")
    build_website(name, folder, Path(args.transformers_js) if args.transformers_js else None)
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    print(f"{folder}: {len(sizes)} files, {sum(sizes):,} bytes, for any web server; to see it here:")
    print(f"python -m http.server --directory {folder}")


def serve(args: DemoArguments, names: list[str]) -> None:
    try:
        from modeling_gptlite.page.app import launch
    except ImportError as error:
        raise UserError('the demo needs Gradio: pip install "gptlite[demo]"') from error
    from modeling_gptlite.page.tracing import load

    models = [load(name, args.trust_remote_code) for name in names]
    launch(models, server_name=args.host, server_port=args.port, share=args.share)


if __name__ == "__main__":
    run(main)
