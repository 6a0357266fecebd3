"""A page to play with a model: a prompt, and the text as it is written.

    python -m scripts.demo --model out/quickstart

The same file is the app of a Space, so it stands alone: it needs gradio, torch and transformers, and not this package.
"""

import argparse
import contextlib
import threading


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub name of the model")
    parser.add_argument("--host", help="address to listen on (default: $GRADIO_SERVER_NAME, else this machine only)")
    parser.add_argument("--port", type=int, help="port to listen on (default: the first free one from 7860)")
    parser.add_argument(
        "--trust_remote_code", action="store_true", help="run the code that comes with the model, where it has any"
    )
    args = parser.parse_args(argv)
    try:
        import gradio  # noqa: F401
    except ImportError:
        parser.error("the demo needs gradio: pip install 'gptlite[demo]'")
    build_page(args.model, args.trust_remote_code).queue(max_size=32).launch(
        server_name=args.host, server_port=args.port, share=False
    )


def build_page(name_or_path: str, trust_remote_code: bool):
    """The Gradio page for one model."""
    import gradio
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with contextlib.suppress(ImportError):
        import modeling_gptlite  # noqa: F401  where the package is there, its models need no remote code

    tokenizer = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(name_or_path, trust_remote_code=trust_remote_code).eval()

    def write(prompt: str, temperature: float, length: int, seed: int):
        if unknown := sorted({c for c in prompt if tokenizer.unk_token_id in tokenizer(c)["input_ids"]}):
            raise gradio.Error(f"The model has never seen {' '.join(unknown)}")
        yield from stream(model, tokenizer, prompt or tokenizer.bos_token, temperature, int(length), int(seed))

    return gradio.Interface(
        write,
        [
            gradio.Textbox("ROMEO:", label="Prompt", lines=2),
            gradio.Slider(0.1, 1.5, 0.8, label="Temperature"),
            gradio.Slider(10, 2000, 400, step=10, label="Length (tokens)"),
            gradio.Number(1, label="Seed", precision=0),
        ],
        gradio.Textbox(label="Text", lines=16),
        title=name_or_path.rstrip("/").split("/")[-1],
        flagging_mode="never",
    )


def stream(model, tokenizer, prompt: str, temperature: float, length: int, seed: int):
    """The text so far, again and again while it grows."""
    import torch
    from transformers import TextIteratorStreamer

    streamer = TextIteratorStreamer(tokenizer, skip_special_tokens=True)
    inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)

    def generate():
        try:
            torch.manual_seed(seed)
            model.generate(
                inputs["input_ids"], streamer=streamer, max_new_tokens=length, do_sample=True, temperature=temperature
            )
        finally:
            streamer.end()  # also where generation fails: the reader must not wait for ever

    threading.Thread(target=generate, daemon=True).start()
    text = ""
    for piece in streamer:
        text += piece
        yield text


if __name__ == "__main__":
    main()
