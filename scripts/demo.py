"""A page to play with a model: text as it is written, how likely each part of it was, and what the model looked at.

    python -m scripts.demo --model out/quickstart
    python -m scripts.demo --model out/quickstart/checkpoint-400 out/quickstart

Two models write side by side. The same file is the app of a Space, so it stands alone: it needs gradio, torch and
transformers, and not this package.
"""

import argparse
import contextlib
import html
import json
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path


MAX_SAMPLES = 4
MAX_WAITING = 64  # requests in the queue; more are told to come again
AT_ONCE = 4  # requests that are answered at the same time
ALTERNATIVES = 5
ATTENTION_TOKENS = 24  # as many as are legible on a phone
SECONDS_BETWEEN_UPDATES = 0.08
VISIBLE = {" ": "␣", "\n": "↵", "\t": "⇥"}


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = fail
    parser.add_argument(
        "--model", required=True, nargs="+", help="folder or Hub name of the model, or of two to compare"
    )
    parser.add_argument("--host", help="address to listen on (default: $GRADIO_SERVER_NAME, else this machine only)")
    parser.add_argument("--port", type=int, help="port to listen on (default: the first free one from 7860)")
    parser.add_argument("--share", action="store_true", help="also give the page a public address, through Gradio")
    parser.add_argument(
        "--trust_remote_code", action="store_true", help="run the code that comes with the model, where it has any"
    )
    args = parser.parse_args(argv)
    if len(args.model) > 2:
        fail(f"--model takes one model, or two to compare, got {len(args.model)}")
    try:
        import gradio
    except ImportError:
        fail("the demo needs gradio: pip install 'gptlite[demo]'")
    import torch

    writers = [load(name, args.trust_remote_code) for name in args.model]
    torch.set_num_threads(max(1, torch.get_num_threads() // AT_ONCE))  # else the requests fight for the cores
    page = build_page(writers).queue(max_size=MAX_WAITING, default_concurrency_limit=AT_ONCE)
    fonts = {"font": ["ui-sans-serif", "system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    try:
        page.launch(
            server_name=args.host,
            server_port=args.port,
            share=args.share,
            theme=gradio.themes.Default(primary_hue="orange", **fonts),
            css=CSS,
            head=f"<script>{SCRIPT}</script>",
            footer_links=[],
        )
    except OSError as error:
        fail(str(error))


def fail(message: str):
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)


# ---- The model -----------------------------------------------------------------------------------------------------


@dataclass
class Token:
    """A token that was written, and what the model thought before: its own probabilities, at temperature 1."""

    text: str
    probability: float
    best: list[tuple[str, float]]  # the likeliest tokens, likeliest first


@dataclass
class Sample:
    """A text in the making: `ids` are those of prompt and text."""

    ids: list[int]
    tokens: list[Token] = field(default_factory=list)


@dataclass
class Writer:
    """A model that writes, and can be asked what it thought."""

    label: str
    model: object
    tokenizer: object

    @property
    def context(self) -> int:
        return self.model.config.max_position_embeddings

    def encode(self, prompt: str) -> list[int]:
        """The prompt's ids.

        Raises:
            ValueError: with a message for the reader, where the model cannot read the prompt.
        """
        if unknown := [c for c in dict.fromkeys(prompt) if not self._knows(c)]:
            raise ValueError(
                f"{self.label} has never seen {', '.join(f'{c!r} (U+{ord(c):04X})' for c in unknown[:8])}"
                f"{' and others' if unknown[8:] else ''}. Please write the prompt without."
            )
        prompt = prompt or self.tokenizer.bos_token
        if prompt is None:
            raise ValueError(f"{self.label} has no token that begins a text. Please write a prompt.")
        return self.tokenizer(prompt, add_special_tokens=False)["input_ids"]

    def _knows(self, character: str) -> bool:
        try:
            return self.tokenizer.unk_token_id not in self.tokenizer(character, add_special_tokens=False)["input_ids"]
        except Exception:  # what `tokenizers` raises where there is no unknown token
            return False

    def write(
        self, ids: list[int], samples: int, length: int, temperature: float, top_k: int, top_p: float, seed: int
    ) -> Iterator[list[Sample]]:
        """The samples, after every token again.

        Sample i draws from a generator of its own, seeded with `seed + i`: what others do meanwhile changes nothing.
        A full context is handled as the model's own `generate` does: its newest half is kept and read again.
        """
        import torch

        texts = [Sample(list(ids)) for _ in range(samples)]
        generators = [torch.Generator().manual_seed((seed + i) % 2**63) for i in range(samples)]
        window = unread = torch.tensor([ids[-self.context :]] * samples, device=self.model.device)
        cache = None
        for _ in range(length):
            if window.shape[1] > self.context:
                window = unread = window[:, -max(self.context // 2, 1) :]
                cache = None
            with torch.inference_mode():
                output = self.model(input_ids=unread, past_key_values=cache, use_cache=True)
            cache, logits = output.past_key_values, output.logits[:, -1].float().cpu()
            chosen = [
                draw(row, temperature, top_k, top_p, generator)
                for row, generator in zip(logits, generators, strict=True)
            ]
            best = logits.softmax(-1).topk(min(ALTERNATIVES, logits.shape[-1]))
            for text, token_id, row, values, indices in zip(texts, chosen, logits, *best, strict=True):
                names = [self.tokenizer.decode([i]) for i in indices.tolist()]
                probability = row.softmax(-1)[token_id].item()
                text.ids.append(token_id)
                text.tokens.append(
                    Token(self.tokenizer.decode([token_id]), probability, [*zip(names, values.tolist(), strict=True)])
                )
            unread = torch.tensor(chosen, device=window.device)[:, None]
            window = torch.cat([window, unread], dim=1)
            yield texts

    def attention(self, ids: list[int], layer: int, head: int) -> tuple[list[str], list[list[float]]]:
        """The newest tokens, and how much each (row) looks at each (column), in one head of one layer, from 0."""
        import torch

        ids = ids[-self.context :]
        with torch.inference_mode():
            output = self.model(input_ids=torch.tensor([ids], device=self.model.device), output_attentions=True)
        layer, shown = min(layer, len(output.attentions) - 1), min(len(ids), ATTENTION_TOKENS)
        heads = output.attentions[layer][0].float()  # heads, tokens, tokens
        weights = heads[min(head, len(heads) - 1), -shown:, -shown:]
        return [self.tokenizer.decode([i]) for i in ids[-shown:]], weights.tolist()


def load(name: str, trust_remote_code: bool) -> Writer:
    """A model from a folder or the Hub, on the fastest device there is."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with contextlib.suppress(ImportError):
        import modeling_gptlite  # noqa: F401  where the package is there, its models need no remote code

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        # Eager attention is the one that returns its weights.
        model = AutoModelForCausalLM.from_pretrained(
            name, trust_remote_code=trust_remote_code, attn_implementation="eager"
        )
    except (OSError, ValueError) as error:
        fail(f"cannot load the model {name!r}: {error}")
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    parts = Path(name).resolve().parts if Path(name).exists() else Path(name).parts
    is_checkpoint = parts[-1].startswith("checkpoint-")
    return Writer("/".join(parts[-2:]) if is_checkpoint else parts[-1], model.to(device).eval(), tokenizer)


def draw(logits, temperature: float, top_k: int, top_p: float, generator) -> int:
    """A token from `(vocab_size,)` logits, as transformers' `generate` samples: temperature, then top-k, then top-p."""
    weights, order = (logits / temperature).softmax(-1).sort(descending=True)
    if top_k:
        weights[top_k:] = 0
        weights /= weights.sum()
    weights[weights.cumsum(-1) - weights >= top_p] = 0
    return order[weights.multinomial(1, generator=generator)].item()


# ---- HTML ----------------------------------------------------------------------------------------------------------


def render_sample(label: str, prompt: str, sample: Sample) -> str:
    """A text, every token shaded by its probability and carrying the alternatives for `SCRIPT` to show.

    The outer element is left open, which HTML allows: a text that grows is then the old string and more, and Gradio
    sends only what is new.
    """
    head = f'<h3>{html.escape(label)}</h3><div class="text" tabindex="0" aria-label="text of {html.escape(label)}">'
    return f"{head}<b>{html.escape(prompt)}</b>{''.join(map(render_token, sample.tokens))}"


def render_token(token: Token) -> str:
    best = [(VISIBLE.get(text, text), round(probability, 4)) for text, probability in token.best]
    rest = max(0.0, round(1 - sum(probability for _, probability in best), 4))
    thought = {
        "token": VISIBLE.get(token.text, token.text),
        "p": round(token.probability, 4),
        "best": best,
        "rest": rest,
    }
    newline = ' class="newline"' if token.text == "\n" else ""
    data = html.escape(json.dumps(thought, ensure_ascii=False))
    return f'<i{newline} style="--p:{token.probability:.2f}" data-thought="{data}">{html.escape(token.text)}</i>'


def render_attention(label: str, tokens: list[str], weights: list[list[float]]) -> str:
    """A square of cells: rows look at columns; the darker, the more."""
    size, count = 16, len(tokens)
    names = [html.escape(VISIBLE.get(token, token)[:2]) for token in tokens]
    cells = []
    for row in range(count):
        for column in range(row + 1):  # a token looks at those before it, and at itself
            weight = weights[row][column]
            cells.append(
                f'<rect x="{(column + 1) * size}" y="{(row + 1) * size}" width="{size - 1}" height="{size - 1}" '
                f'style="--w:{weight:.3f}"><title>{names[row]} looks at {names[column]}: {weight:.1%}</title></rect>'
            )
    for i, name in enumerate(names):
        middle = (i + 1.5) * size
        cells.append(f'<text x="{size / 2}" y="{middle}">{name}</text><text x="{middle}" y="{size / 2}">{name}</text>')
    side = (count + 1) * size
    return (
        f'<figure class="attention"><figcaption>{html.escape(label)}</figcaption>'
        f'<svg viewBox="0 0 {side} {side}" role="img" aria-label="attention of {html.escape(label)}">'
        f"{''.join(cells)}</svg></figure>"
    )


def render_status(message: str, is_error: bool = False) -> str:
    return f'<p class="{"error" if is_error else "status"}" role="status">{html.escape(message)}</p>'


# ---- The page ------------------------------------------------------------------------------------------------------


def build_page(writers: list[Writer]):
    """The Gradio page for one model, or for two side by side."""
    import gradio

    told_to_stop = set()  # sessions; ending a text from within leaves it whole, which Gradio's `cancels` may not

    def halt(request: gradio.Request):
        told_to_stop.add(request.session_hash)

    def write(prompt, temperature, top_k, top_p, length, samples, seed, request: gradio.Request):
        """Yields the status, what the attention needs, and one text for each model and sample."""
        empty = [""] * (len(writers) * MAX_SAMPLES)
        try:
            prompts = [writer.encode(prompt) for writer in writers]
        except ValueError as error:
            yield render_status(str(error), is_error=True), None, *empty
            return
        length = int(length)
        settings = (int(samples), length, temperature, int(top_k), top_p, int(seed or 0))
        runs = [writer.write(ids, *settings) for writer, ids in zip(writers, prompts, strict=True)]
        told_to_stop.discard(request.session_hash)
        began = shown = time.perf_counter()
        for number, step in enumerate(zip(*runs, strict=True), 1):
            now = time.perf_counter()
            ends = number == length or request.session_hash in told_to_stop
            if number == 1 or ends or now - shown > SECONDS_BETWEEN_UPDATES:
                shown, texts = now, list(empty)
                for i, (writer, found) in enumerate(zip(writers, step, strict=True)):
                    for j, sample in enumerate(found):
                        label = f"{writer.label}, sample {j + 1}" if samples > 1 else writer.label
                        texts[i * MAX_SAMPLES + j] = render_sample(label, prompt, sample)
                message = f"{number} tokens in {now - began:.1f} s" + ", stopped" * (ends and number < length)
                yield render_status(message), [list(found[0].ids) for found in step], *texts
            if ends:
                break
        told_to_stop.discard(request.session_hash)

    def attend(ids, layer, head):
        if not ids:
            return render_status("There is no text yet.")
        return "".join(
            render_attention(writer.label, *writer.attention(some, int(layer) - 1, int(head) - 1))
            for writer, some in zip(writers, ids, strict=True)
        )

    def numbers(name: str) -> list[str]:
        return [str(i + 1) for i in range(max(getattr(writer.model.config, name) for writer in writers))]

    with gradio.Blocks(title=writers[-1].label, analytics_enabled=False) as page:
        gradio.Markdown(f"# {' and '.join(html.escape(writer.label) for writer in writers)}\n\n{describe(writers)}")
        with gradio.Row(elem_id="page"):
            with gradio.Column(elem_id="ask"):
                prompt = gradio.Textbox(
                    "ROMEO:", label="Prompt", lines=2, max_lines=8, max_length=5000, info="Shift + Enter writes."
                )
                with gradio.Row(elem_id="buttons"):
                    start = gradio.Button("Write", variant="primary", elem_id="write")
                    again = gradio.Button("Another", elem_id="another")
                    stop = gradio.Button("Stop", elem_id="stop")
                status = gradio.HTML(elem_id="status")
            with gradio.Column(elem_id="texts"):
                slots = [gradio.HTML(elem_classes="slot") for _ in range(len(writers) * MAX_SAMPLES)]
            with gradio.Column(elem_id="settings"):
                settings = [
                    gradio.Slider(0.1, 2, 0.8, step=0.05, label="Temperature", info="Below 1 safer, above 1 wilder."),
                    gradio.Slider(0, 100, 0, step=1, label="Top-k", info="Choose among so many tokens; 0: among all."),
                    gradio.Slider(
                        0.05, 1, 1, step=0.05, label="Top-p", info="Choose among the likeliest that make up so much."
                    ),
                    gradio.Slider(10, 1000, 300, step=10, label="Length", info="Tokens to write."),
                    gradio.Slider(1, MAX_SAMPLES, 1, step=1, label="Samples", info="Texts side by side."),
                ]
                seed = gradio.Number(1, label="Seed", info="The same seed, the same text.", precision=0, minimum=0)
        with gradio.Accordion("What the model looks at", open=False, elem_id="looks"):
            gradio.Markdown(
                f"Each row is one of the last {ATTENTION_TOKENS} tokens of the first text, each column what it looks "
                "at; a row sums to 1 together with the tokens before."
            )
            layer = gradio.Radio(numbers("num_hidden_layers"), value="1", label="Layer", elem_id="layer")
            head = gradio.Radio(numbers("num_attention_heads"), value="1", label="Head", elem_id="head")
            picture = gradio.HTML(elem_id="attention")

        ids = gradio.State()
        quiet = {"show_progress": "hidden", "api_visibility": "private"}
        writing = {"inputs": [prompt, *settings, seed], "outputs": [status, ids, *slots], "show_progress": "hidden"}
        looking = {"fn": attend, "inputs": [ids, layer, head], "outputs": picture, **quiet}
        started = [
            start.click(write, **writing, api_name="write"),
            prompt.submit(write, **writing, api_visibility="private"),
            again.click(lambda: random.randrange(1_000_000), None, seed, **quiet).then(
                write, **writing, api_visibility="private"
            ),
        ]
        for event in started:
            event.then(**looking)
        stop.click(halt, api_visibility="private", queue=False)
        for choice in (layer, head):
            choice.change(**looking)
    return page


def describe(writers: list[Writer]) -> str:
    sizes = dict.fromkeys(f"{writer.model.num_parameters():,}" for writer in writers)
    return (
        f"{' and '.join(sizes)} parameters. The stronger the colour, the less the model expected what it wrote. Point "
        "at a character, or move through a text with the arrow keys, to see what else it thought of: its own "
        "probabilities, before temperature, top-k and top-p."
    )


CSS = """
#page { display: grid; grid-template: "ask texts" auto "settings texts" 1fr / minmax(17rem, 22rem) 1fr; gap: 1rem; }
#ask { grid-area: ask; } #texts { grid-area: texts; } #settings { grid-area: settings; }
#page > * { min-width: 0 !important; }
#buttons button { min-width: 0; flex: 1; }
#texts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); align-content: start; }
#texts .slot:not(:has(.text)) { display: none; }
#texts h3 { margin: 0 0 .4rem; font-size: .9rem; overflow-wrap: anywhere; }
.text { font: 15px/1.6 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; padding: .8rem;
  border: 1px solid var(--border-color-primary); border-radius: 8px; background: var(--background-fill-primary); }
.text i { font-style: normal; border-radius: 2px;
  background: color-mix(in srgb, #f97316 calc((1 - var(--p)) * 55%), transparent); }
.text i.on, .text i:hover { outline: 2px solid #ea580c; }
.text i.newline::before { content: "↵"; opacity: .35; }
.error { color: #b91c1c; font-weight: 600; } .dark .error { color: #fca5a5; }
.status { opacity: .75; }
#tip { position: fixed; z-index: 1000; width: 15rem; padding: .6rem .8rem; border-radius: 8px; pointer-events: none;
  background: #1e293b; color: #f8fafc; font: 13px/1.5 ui-monospace, monospace; box-shadow: 0 4px 16px #0006; }
#tip[hidden] { display: none; }
#tip div { display: flex; justify-content: space-between; white-space: pre;
  background: linear-gradient(#ea580c99 0 0) 0 / calc(var(--p) * 100%) 100% no-repeat; }
.attention { display: inline-block; width: min(100%, 30rem); margin: 0 1rem 0 0; }
.attention svg { width: 100%; height: auto; }
.attention rect { fill: color-mix(in srgb, #ea580c calc(var(--w) * 100%), #94a3b822); }
.attention text { font: 10px ui-monospace, monospace; fill: currentColor; text-anchor: middle;
  dominant-baseline: central; }
@media (max-width: 720px) { #page { grid-template: "ask" "texts" "settings" / 1fr; } }
"""

# Shows what a token carries, at the pointer, under a finger, or with the arrow keys; all of it as text, not as HTML.
SCRIPT = """
(() => {
  const tip = document.body.appendChild(Object.assign(document.createElement("div"), { id: "tip", hidden: true }));
  tip.setAttribute("role", "tooltip");
  tip.setAttribute("aria-live", "polite");
  const line = (name, p) => {
    const row = document.createElement("div");
    row.style.setProperty("--p", p);
    row.append(...[name, (100 * p).toFixed(2) + " %"].map((text) => {
      const cell = document.createElement("span");
      cell.textContent = text;
      return cell;
    }));
    return row;
  };
  const show = (token) => {
    document.querySelectorAll(".text i.on").forEach((other) => other.classList.remove("on"));
    tip.hidden = !token;
    if (!token) return;
    const { token: text, p, best, rest } = JSON.parse(token.dataset.thought);
    const heading = document.createElement("strong");
    heading.textContent = `wrote ${text}: ${(100 * p).toFixed(2)} %`;
    tip.replaceChildren(heading, ...best.map(([name, p]) => line(name, p)), line("the rest", rest));
    token.classList.add("on");
    const place = token.getBoundingClientRect(), below = place.bottom + 6;
    tip.style.left = Math.max(8, Math.min(place.left, innerWidth - tip.offsetWidth - 8)) + "px";
    tip.style.top = (below + tip.offsetHeight < innerHeight ? below : place.top - tip.offsetHeight - 6) + "px";
  };
  const at = (event) => event.target.closest?.(".text i");
  addEventListener("mouseover", (event) => show(at(event)));
  addEventListener("click", (event) => show(at(event)));
  addEventListener("scroll", () => tip.hidden || show(document.querySelector(".text i.on")), true);
  addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const text = event.target.closest?.(".text");
    if (event.key === "Escape") show(null);
    if (!step || !text) return;
    const tokens = [...text.querySelectorAll("i")], now = tokens.findIndex((token) => token.classList.contains("on"));
    event.preventDefault();
    show(tokens[Math.max(0, Math.min(now + step, tokens.length - 1))]);
  });
})();
"""


if __name__ == "__main__":
    main()
