"""The Gradio page for one model, or for two side by side. It needs the extra `demo`.

launch([load("out/quickstart")], server_port=7860)
"""

import random
import time
from collections.abc import Iterator
from typing import Any

import gradio
import torch

from ..errors import UserError
from .assets import asset
from .render import (
    render_attention,
    render_error,
    render_heading,
    render_hint,
    render_model,
    render_sample,
    render_status,
    visible,
)
from .settings import FIRST_SEED, KEEP_SEED_INFO, PROMPT_INFO, SEED_INFO, SEEDS, SETTINGS
from .tracing import Sample, TracedModel, example_prompts, unit_of


MOST_MODELS, MOST_SAMPLES = 2, 4
MOST_WAITING = 128  # requests in the queue; Gradio refuses more
MOST_SESSIONS = 256  # whose texts are kept, for their attention; the oldest is forgotten first
AT_ONCE = 4  # requests that are answered at the same time
SECONDS_BETWEEN_UPDATES = 0.08
SHOWN, HIDDEN = gradio.update(visible=True), gradio.update(visible=False)
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
FONTS: dict[str, Any] = {"font": ["ui-sans-serif", "system-ui", "sans-serif"], "font_mono": ["ui-monospace"]}


def launch(models: list[TracedModel], **settings: Any) -> None:
    """Serve the page until the process is interrupted.

    Args:
        models: One or two.
        settings: For `gradio.Blocks.launch`.

    Raises:
        UserError: The address is in use.
    """
    torch.set_num_threads(max(1, torch.get_num_threads() // AT_ONCE))  # simultaneous requests share the cores
    page = Page(models).build().queue(max_size=MOST_WAITING, default_concurrency_limit=AT_ONCE)
    try:
        page.launch(
            theme=gradio.themes.Default(primary_hue="orange", **FONTS).set(
                block_info_text_color="*neutral_600",  # Gradio's own is too pale to read
                block_info_text_color_dark="*neutral_300",
            ),
            css=asset("style.css") + asset("gradio.css"),
            head=f"<script>{asset('page.js')}</script>",
            footer_links=[],
            state_session_capacity=MOST_SESSIONS,
            **settings,
        )
    except OSError as error:
        raise UserError(str(error)) from error


class Page:
    """The components of the page and what its events do. `slots` are the places for texts, `MOST_SAMPLES` per model."""

    def __init__(self, models: list[TracedModel]):
        self.models = models
        self.unit = unit_of(models)
        self.prompts = example_prompts(models)
        # The request that writes in each session. A request ends when it is no longer here: it was stopped, or a newer
        # one replaced it. A generator that ends by itself keeps its text; with Gradio's `cancels` it may not.
        self.writing: dict[str | None, object] = {}

    # ---- Events ----------------------------------------------------------------------------------------------------

    def write(
        self,
        prompt: str,
        temperature: float,
        top_k: float,
        top_p: float,
        length: float,
        samples: float,
        seed: float | None,
        keep_seed: bool,
        request: gradio.Request,
    ) -> Iterator[dict[Any, Any]]:
        """Yields what changes on the page, by component. A text that is still being written in the session ends."""
        session: Any = request.session_hash  # type: ignore[attr-defined]  # set by `gradio.Request.__init__`
        self.writing[session] = request
        try:
            yield from self._write(prompt, temperature, top_k, top_p, length, samples, seed, keep_seed, request)
        finally:  # also when the visitor leaves
            if self.writing.get(session) is request:
                del self.writing[session]

    def _write(self, prompt, temperature, top_k, top_p, length, samples, seed, keep_seed, request):
        empty: dict[Any, Any] = {**dict.fromkeys(self.slots, ""), self.chosen: "", self.picture: "", self.written: []}
        try:
            prompts = [model.encode(prompt) for model in self.models]
        except UserError as error:
            yield {**empty, self.status: render_error(str(error))}
            return
        number = int(seed or 0) if keep_seed else random.randrange(SEEDS)
        settings = (int(samples), int(length), temperature, int(top_k), top_p, number)
        runs = [model.write(ids, *settings) for model, ids in zip(self.models, prompts, strict=True)]
        yield {**empty, self.seed: number, self.start: HIDDEN, self.stop: SHOWN}
        yield from self._stream(prompt, zip(*runs, strict=True), int(length), number, request)

    def _stream(self, prompt, steps, length: int, seed: int, request: gradio.Request) -> Iterator[dict[Any, Any]]:
        began = shown = time.perf_counter()
        for number, step in enumerate(steps, 1):
            now = time.perf_counter()
            current = self.writing.get(request.session_hash)
            if current is not None and current is not request:
                return  # the page shows the newer request's text
            ends = number == length or current is None
            if number == 1 or ends or now - shown > SECONDS_BETWEEN_UPDATES:
                shown = now
                how = ", stopped" if ends and number < length else ""
                status = render_status(f"{number} {self.unit}s in {now - began:.1f} s{how}.", seed)
                yield {self.status: status, self.written: step, **self._texts(prompt, step, seed)}
            if ends:
                return

    def _texts(self, prompt: str, step: tuple[list[Sample], ...], seed: int) -> dict[Any, str]:
        return {
            self.slots[slot]: render_sample(f"seed {seed + j}", prompt, sample, slot)
            for i, samples in enumerate(step)
            for j, sample in enumerate(samples)
            for slot in [i * MOST_SAMPLES + j]
        }

    def halt(self, request: gradio.Request) -> None:
        self.writing.pop(request.session_hash, None)

    def buttons(self, request: gradio.Request) -> tuple[Any, Any]:
        """Whether Write and Stop are visible."""
        return (HIDDEN, SHOWN) if request.session_hash in self.writing else (SHOWN, HIDDEN)

    def attend(self, written: tuple[list[Sample], ...], chosen: str, layer: str, head: str) -> str:
        """What the model attended to when it wrote the chosen token: "slot index", as `page.js` sends it."""
        if not chosen or not written:
            return ""
        slot, index = map(int, chosen.split())
        model, samples = self.models[slot // MOST_SAMPLES], written[slot // MOST_SAMPLES]
        sample = samples[slot % MOST_SAMPLES]
        token = sample.tokens[index]
        tokens, weights = model.attention(sample.ids[token.window], int(layer) - 1, int(head) - 1)
        title = f"What {model.label} attended to when it wrote {visible(token.text)}: layer {layer}, head {head}"
        return render_attention(title, tokens, weights)

    # ---- Layout ----------------------------------------------------------------------------------------------------

    def build(self) -> gradio.Blocks:
        title = " and ".join(model.label for model in self.models)
        with gradio.Blocks(title=title, analytics_enabled=False) as blocks:
            gradio.HTML(render_heading(title, self.unit))
            with gradio.Row(elem_id="page"):
                with gradio.Column(elem_id="ask"):
                    self._build_prompt()
                with gradio.Column(elem_id="texts"):
                    with gradio.Row(elem_id="models"):
                        self.slots = [slot for model in self.models for slot in self._build_model(model)]
                    self._build_attention()
                with gradio.Column(elem_id="settings"):
                    self._build_settings()
            self._connect()
            self._open()
        return blocks

    def _build_prompt(self) -> None:
        self.prompt = gradio.Textbox(label="Prompt", lines=2, max_lines=8, max_length=5000, info=PROMPT_INFO)
        with gradio.Row(elem_id="examples"):
            self.examples = [gradio.Button(visible(prompt), size="sm") for prompt in self.prompts]
        with gradio.Row(elem_id="buttons"):
            self.start = gradio.Button("Write", variant="primary", elem_id="write")
            self.stop = gradio.Button("Stop", elem_id="stop", visible=False)
        self.status = gradio.HTML(elem_id="status")

    def _build_model(self, model: TracedModel) -> list[gradio.HTML]:
        with gradio.Column(elem_classes="model"):
            gradio.HTML(render_model(model))
            return [gradio.HTML(elem_classes="slot") for _ in range(MOST_SAMPLES)]

    def _build_attention(self) -> None:
        def numbers(name: str) -> list[str]:
            return [str(i + 1) for i in range(max(getattr(model.model.config, name) for model in self.models))]

        with gradio.Column(elem_id="attention"):
            gradio.HTML(render_hint(self.unit))
            self.layer = gradio.Radio(numbers("num_hidden_layers"), value="1", label="Layer", elem_id="layer")
            self.head = gradio.Radio(numbers("num_attention_heads"), value="1", label="Head", elem_id="head")
            self.picture = gradio.HTML(elem_id="picture")
        self.chosen = gradio.Textbox(elem_id="chosen", visible="hidden")

    def _build_settings(self) -> None:
        self.seed = gradio.Number(FIRST_SEED, label="Seed", precision=0, minimum=0, info=SEED_INFO)
        self.keep_seed = gradio.Checkbox(False, label="Keep this seed", info=KEEP_SEED_INFO)
        self.settings = [
            gradio.Slider(
                setting.low,
                setting.high,
                setting.value,
                step=setting.step,
                label=setting.label,
                info=setting.info.format(units=f"{self.unit}s"),
            )
            for setting in SETTINGS.values()
        ]
        self.samples = gradio.Slider(
            1, MOST_SAMPLES, 1, step=1, label="Samples", info="Texts of each model; each has a seed."
        )

    def _connect(self) -> None:
        self.written = gradio.State([])
        changed = [self.start, self.stop, self.chosen, self.picture]
        writing: dict[str, Any] = {
            "fn": self.write,
            "inputs": [self.prompt, *self.settings, self.samples, self.seed, self.keep_seed],
            "outputs": [*self.slots, self.status, self.seed, *changed, self.written],
            "show_progress": "minimal",
            "show_progress_on": self.status,
            "concurrency_id": "write",  # one limit for all events that write
        }
        started = [
            self.start.click(**writing, api_name="write"),
            self.prompt.submit(**writing, api_visibility="private"),
        ]
        for button, prompt in zip(self.examples, self.prompts, strict=True):
            filled = button.click(lambda prompt=prompt: prompt, None, self.prompt, **QUIET)
            started.append(filled.then(**writing, api_visibility="private"))
        for event in started:  # whether it succeeded or not
            event.then(self.buttons, None, [self.start, self.stop], **QUIET)
        self.stop.click(self.halt, queue=False, **QUIET)
        self.seed.input(lambda: True, None, self.keep_seed, **QUIET)  # a seed that was typed is meant
        for choice in (self.chosen, self.layer, self.head):
            choice.change(self.attend, [self.written, self.chosen, self.layer, self.head], self.picture, **QUIET)

    def _open(self) -> None:
        """Show the first example with a finished text."""
        if not self.prompts:
            return
        prompt = self.prompt.value = self.prompts[0]
        settings: dict[str, Any] = {name: setting.value for name, setting in SETTINGS.items()}
        runs = [model.write(model.encode(prompt), 1, seed=FIRST_SEED, **settings) for model in self.models]
        *_, step = zip(*runs, strict=True)
        for slot, text in self._texts(prompt, step, FIRST_SEED).items():
            slot.value = text
        self.written.value = step
