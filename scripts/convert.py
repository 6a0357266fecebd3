"""Convert a model: import nanoGPT, GPT-2, Qwen3 and Llama; export the last three, GGUF and ONNX. Exact, or refused.

gptlite convert --from nanogpt out-shakespeare-char/ckpt.pt out/imported --meta meta.pkl
gptlite convert --to gguf out/quickstart out/quickstart-gguf --dtype q8_0
"""

from dataclasses import dataclass

from modeling_gptlite.errors import setting
from modeling_gptlite.files import UserPath
from modeling_gptlite.interchange import FORMATS, VerificationError, convert, readable, writable

from .cli import run
from .parser import Parser


DTYPES = sorted({dtype for format in FORMATS.values() for dtype in format.dtypes})


def summaries(names: list[str]) -> str:
    return "; ".join(f"{name}, {FORMATS[name].summary}" for name in names)


@dataclass
class ConvertArguments:
    """What to convert, and to what."""

    source_format: str | None = setting(
        None,
        f"Format of IN: {summaries(readable())}. Default: the class that IN holds, never nanogpt.",
        aliases=["--from"],
        choices=readable(),
    )
    target_format: str = setting(
        "gptlite", f"Format of OUT: {summaries(writable())}.", aliases=["--to"], choices=writable()
    )
    dtype: str | None = setting(
        None, "Precision of the weights in OUT, for --to gguf. Default: that of IN.", choices=DTYPES
    )
    meta: UserPath | None = setting(
        None, "File with the characters of the model, for --from nanogpt. Default: the meta.pkl beside IN."
    )
    tokenizer: UserPath | None = setting(
        None, "Folder or Hub name of the tokenizer. Default: the one in IN, or the characters of meta.pkl."
    )
    check: bool = setting(True, "Run the result, and compare its logits with those of the model.")


def main(argv: list[str] | None = None) -> None:
    parser = Parser((ConvertArguments,), __doc__)
    parser.add_argument("input", type=UserPath, metavar="IN", help="The model: a folder, a file or a name on the Hub.")
    parser.add_argument("output", type=UserPath, metavar="OUT", help="The folder to write, new or empty.")
    args, paths = parser.parse(argv)

    import transformers

    transformers.utils.logging.disable_progress_bar()
    try:
        convert(paths.input, paths.output, **vars(args))
    except VerificationError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    run(main)
