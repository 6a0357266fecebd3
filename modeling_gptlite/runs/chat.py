"""A conversation with a saved model, in the form of its tokenizer's chat template.

chat = Chat(*load_for_inference("out/talking"), SamplingSettings(greedy=True), system="Answer in one sentence.")
chat.reply("Who are you?", write=sys.stdout.write)
"""

from collections.abc import Callable
from typing import Any

from jinja2 import TemplateError

from ..decoding import plain_ids
from ..errors import UserError
from ..loading import longest_text
from .generate import SamplingSettings, Streamer, as_inputs, check_characters, ends, stopping


class Chat:
    """A conversation.

    Args:
        system: The message with the role `system`, before all others.
        report: Called with a line when turns are dropped.

    Attributes:
        messages: The history as `role` and `content`, as chat templates take it.

    Raises:
        UserError: The tokenizer has no chat template, or its template refuses a system message.
    """

    def __init__(
        self,
        model,
        tokenizer,
        settings: SamplingSettings,
        system: str | None = None,
        report: Callable[[str], Any] = print,
    ):
        self.model, self.tokenizer, self.settings, self.report = model, tokenizer, settings, report
        self.context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self.begin = [] if system is None else [{"role": "system", "content": system}]
        check_template(tokenizer, model.name_or_path)
        check_characters(self.tokenizer, "the system message", system or "")
        try:
            self._render([*self.begin, {"role": "user", "content": ""}])
        except (TemplateError, TypeError, ValueError) as error:
            hint = "" if system is None else "; leave out --system if it has no place for one"
            raise UserError(f"the model's chat template cannot be applied: {error}{hint}") from error
        self.reset()

    def reset(self) -> None:
        """Forget everything but the system message."""
        self.messages = list(self.begin)

    def reply(self, text: str, write: Callable[[str], Any]) -> str:
        """The model's reply to a message of the user; `write` is called with each piece as soon as it is complete.

        After a KeyboardInterrupt, what was written so far is the reply in the history; without any, the message is
        forgotten.

        Raises:
            UserError: The message has characters outside the vocabulary, or is longer than the context; the history
                stays as it was.
        """
        messages, inputs = self._fitting(text)
        pieces: list[str] = []

        def take(piece: str) -> None:
            if piece := piece if pieces else piece.lstrip():
                pieces.append(piece)
                write(piece)

        streamer = Streamer(self.tokenizer, take, self.settings.stop)
        is_whole = False
        try:
            self.model.generate(**inputs, **self._arguments(inputs), streamer=streamer)
            is_whole = True
        except KeyboardInterrupt:
            streamer.end()
            raise
        finally:
            if not pieces:
                write("\n")
            reply = "".join(pieces).strip()
            if reply or is_whole:
                self.messages = [*messages, {"role": "assistant", "content": reply}]
        return reply

    def _fitting(self, text: str):
        """The history with the user's message, without its oldest turns if it does not fit; and the same encoded."""
        check_characters(self.tokenizer, "the message", text)
        messages, dropped = [*self.messages, {"role": "user", "content": text}], 0
        inputs = self._encode(messages)
        while len(messages) > len(self.begin) + 1 and not self._fits(inputs, self._room()):
            del messages[len(self.begin) : len(self.begin) + 2]  # a question with its reply
            dropped += 1
            inputs = self._encode(messages)
        if not self._fits(inputs, 1):
            tokens = inputs["input_ids"].shape[1]
            raise UserError(f"the message has {tokens:,} tokens, and the model's context length is {self.context:,}")
        if dropped:
            turns = "turn is" if dropped == 1 else f"{dropped} turns are"
            self.report(f"the context of {self.context:,} tokens is full: the oldest {turns} dropped")
        return messages, inputs

    def _room(self) -> int:
        """Tokens to keep free for the reply."""
        return min(self.settings.max_new_tokens, (self.context or 0) // 4)

    def _fits(self, inputs, room: int) -> bool:
        return self.context is None or inputs["input_ids"].shape[1] + room <= self.context

    def _render(self, messages: list[dict[str, str]]) -> str:
        return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    def _encode(self, messages: list[dict[str, str]]):
        return as_inputs(self.model, plain_ids(self.tokenizer, self._render(messages)))

    def _arguments(self, inputs) -> dict[str, Any]:
        """For `generate`: a reply ends at any token that ends a text, and at the context of a model that has an end."""
        longest, length = longest_text(self.model), self.settings.max_new_tokens
        if longest is not None:
            length = min(length, longest - inputs["input_ids"].shape[1])
        arguments = {**self.settings.arguments(), **ends(self.model, self.tokenizer)}
        return {**arguments, **stopping(self.tokenizer, self.settings, inputs), "max_new_tokens": length}


def check_template(tokenizer, name_or_path: str) -> None:
    """Raise `UserError` if there is no chat template."""
    if not tokenizer.chat_template:
        raise UserError(
            f"{name_or_path} has no chat template, so it continues text: gptlite generate --model {name_or_path}"
        )
