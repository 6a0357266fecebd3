"""What a document contains, in TRL's terms: language modeling, prompt-completion or conversational data.

parts = PROMPT_COMPLETION.parts({"prompt": "1 + 1 =", "completion": " 2"}, CHAT_TEMPLATE, {})
assert parts == [("1 + 1 =", False), (" 2", True)]
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template


Part = tuple[str, bool]  # text, and whether the model learns to predict it

# Text, or a list of text parts: {"type": "text", "text": ...}.
_CONTENT = (
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['text'] is string %}{{ part['text'] }}"
    "{% else %}{{ raise_exception('the model reads text only, not parts of other types') }}{% endif %}"
    "{% endfor %}{% endif %}"
)
# One line per message, `user: ...`; a reply ends with the end-of-text token. For tokenizers without a template.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if not loop.first %}{{ '\\n' }}{% endif %}{{ message['role'] }}:"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ ' ' }}" + _CONTENT + "{{ eos_token or '' }}{% endgeneration %}"
    "{% else %}{{ ' ' }}" + _CONTENT + "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\nassistant:' }}{% endif %}"
)


@dataclass(frozen=True)
class DatasetFormat:
    """How the documents of a source become text."""

    name: str  # as in `run.json`, which keeps these words
    columns: tuple[str, ...]
    # Of a document, a chat template and the tokenizer's special tokens: the text in order, and for each part whether
    # the model learns to predict it. Raises an exception that says what is wrong with the document.
    parts: Callable[[Any, str, Mapping[str, str]], Iterable[Part]]


def _language_modeling(pieces: Iterable[str], template: str, special_tokens: Mapping[str, str]) -> Iterator[Part]:
    return ((piece, True) for piece in pieces)


def _prompt_completion(row: Mapping[str, Any], template: str, special_tokens: Mapping[str, str]) -> list[Part]:
    prompt, completion = row["prompt"], row["completion"]
    if not (isinstance(prompt, str) and isinstance(completion, str)):
        raise TypeError("prompt and completion must be text")
    if not completion:
        raise ValueError("the completion is empty")
    return [(prompt, False), (completion, True)]


def _conversational(row: Mapping[str, Any], template: str, special_tokens: Mapping[str, str]) -> list[Part]:
    messages = row["messages"]
    _check_messages(messages)
    messages = [{**message, "content": _joined(message["content"])} for message in messages]  # most templates join none
    replies = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if not replies:
        raise ValueError("no message has the role 'assistant', so there is nothing to learn")
    parts: list[Part] = []
    done = ""
    for index in replies:
        prompt = _render(messages[:index], template, special_tokens, add_generation_prompt=True)
        reply = _render(messages[: index + 1], template, special_tokens)
        if not (prompt.startswith(done) and reply.startswith(prompt)):
            raise ValueError(
                "the chat template renders a message differently when others follow; put each reply into its own row"
            )
        parts += [(prompt[len(done) :], False), (reply[len(prompt) :], True)]
        done = reply
    return parts


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, list):
        raise TypeError("messages must be a list")
    for number, message in enumerate(messages, 1):
        if not isinstance(message, Mapping):
            raise TypeError(f"message {number} must be an object with role and content")
        if message["content"] is None and not message.get("tool_calls"):
            raise TypeError(f"the content of message {number} is null, not text")
        for part in message["content"] if isinstance(message["content"], list) else ():
            if not (isinstance(part, Mapping) and isinstance(part.get("text"), str)):
                kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
                raise TypeError(f"message {number} has a part of type {kind!r}; a model of text reads text parts only")


def _joined(content: Any) -> Any:
    return "".join(part["text"] for part in content) if isinstance(content, list) else content


def _render(
    messages: list[dict[str, Any]],
    template: str,
    special_tokens: Mapping[str, str],
    add_generation_prompt: bool = False,
) -> str:
    settings: dict[str, Any] = {"add_generation_prompt": add_generation_prompt, **special_tokens}
    rendered = render_jinja_template([messages], chat_template=template, **settings)
    return rendered[0][0]


LANGUAGE_MODELING = DatasetFormat("text", ("text",), _language_modeling)
PROMPT_COMPLETION = DatasetFormat("prompts and completions", ("prompt", "completion"), _prompt_completion)
CONVERSATIONAL = DatasetFormat("conversations", ("messages",), _conversational)
EXAMPLES = (CONVERSATIONAL, PROMPT_COMPLETION)  # the first whose columns are there is the format of a dataset
