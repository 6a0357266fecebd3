"""HTML for the Gradio page: texts, what a token attended to, and messages. `style.css` and `page.js` bring it to life.

render_sample("sample 1, seed 7", "ROMEO:", sample, slot=0)
"""

import html
import json

from .tracing import Sample, Token, TracedModel


VISIBLE = {" ": "␣", "\n": "↵", "\t": "⇥"}


def visible(text: str) -> str:
    """A token as it is named outside of a text: white space alone gets a symbol."""
    return VISIBLE.get(text, text)


def render_heading(title: str, unit: str) -> str:
    return (
        f'<h1>{html.escape(title)}</h1><p class="facts">The stronger the colour, the less likely the {unit}. '
        f'<span class="by-mouse">Point at</span><span class="by-touch">Tap</span> one, or move through a text with the '
        "arrow keys, to see the alternatives: the model's own probabilities, before temperature, top-k and top-p.</p>"
    )


def render_hint(unit: str) -> str:
    return (
        '<h2>Attention</h2><p class="facts"><span class="by-mouse">Click</span><span class="by-touch">Tap</span> a '
        f"{unit} of a text to see what the model attended to when it wrote it. The weights of a head add up to 100 %; "
        "the largest has the strongest colour.</p>"
    )


def render_model(model: TracedModel) -> str:
    """The name of a model, its size and its validation loss."""
    facts = [f"{model.model.num_parameters():,} parameters"]
    if (loss := model.facts.get("loss")) is not None:
        facts.append(f"validation loss {loss:.4f} nats per {model.unit}")
    return f'<h2>{html.escape(model.label)}</h2><p class="facts">{" · ".join(facts)}</p>'


def render_sample(title: str, prompt: str, sample: Sample, slot: int) -> str:
    """A text, each token shaded by its probability. `slot` is the number of its place on the page.

    The outer elements are left open, which HTML allows: a text that grows is then the old string and more, and Gradio
    sends only what is new.
    """
    head = (
        f'<div class="bar"><span>{html.escape(title)}</span><button type="button" class="copy">Copy</button></div>'
        f'<div class="text" tabindex="0" aria-label="{html.escape(title)}" data-slot="{slot}">'
    )
    return f"{head}<b>{html.escape(prompt)}</b>{''.join(map(render_token, sample.tokens))}"


def render_token(token: Token) -> str:
    best = [(visible(text), round(probability, 4)) for text, probability in token.best]
    rest = max(0.0, round(1 - sum(probability for _, probability in best), 4))
    thought = {"token": visible(token.text), "p": round(token.probability, 4), "best": best, "rest": rest}
    data = html.escape(json.dumps(thought, ensure_ascii=False))
    text = html.escape(token.text)
    return f'<i{_newline(token.text)} style="--p:{token.probability:.2f}" data-thought="{data}">{text}</i>'


def render_attention(title: str, tokens: list[str], weights: list[float]) -> str:
    """The tokens that were read, each shaded by its weight relative to the largest."""
    largest = max(weights)
    read = "".join(
        f'<i{_newline(token)} style="--w:{weight / largest:.2f}" data-weight="{weight:.4f}">{html.escape(token)}</i>'
        for token, weight in zip(tokens, weights, strict=True)
    )
    return f'<p>{html.escape(title)}</p><div class="read" tabindex="0" aria-label="{html.escape(title)}">{read}</div>'


def _newline(token: str) -> str:
    return ' class="newline"' if token == "\n" else ""


def render_status(message: str, seed: int | None = None) -> str:
    """What has been written, and the seed with a button that copies it."""
    copy = f' Seed <code>{seed}</code> <button type="button" class="copy" data-copy="{seed}">Copy</button>'
    return f'<p class="status" role="status">{html.escape(message)}{copy if seed is not None else ""}</p>'


def render_error(message: str) -> str:
    return f'<p class="error" role="alert">{html.escape(message)}</p>'
