"""Talking to a model: the history, what ends a reply, the command on a terminal and with piped input."""

import io
import os
import select
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from helpers import ROOT, call, refused, tiny_model
from transformers import AutoTokenizer

from modeling_gptlite.data.examples import EvaluationExamples, Examples, encode_rows
from modeling_gptlite.data.formats import CHAT_TEMPLATE, CONVERSATIONAL
from modeling_gptlite.data.sources import Source
from modeling_gptlite.errors import UserError
from modeling_gptlite.runs.chat import Chat
from modeling_gptlite.runs.generate import SamplingSettings
from scripts import chat as chat_command
from scripts import generate
from tokenization import build_bpe_tokenizer, build_char_tokenizer
from tokenization.corpus import Encoder


ALPHABET = "".join(map(chr, range(32, 127))) + "\n"


def conversation(context=200, system=None, answers=("yes",) * 9, **settings):
    """A `Chat` with a model that gives these answers, what it was asked, and what was reported."""
    tokenizer = build_char_tokenizer(ALPHABET)
    tokenizer.chat_template = CHAT_TEMPLATE
    model = tiny_model("modern-1m", vocab_size=len(tokenizer), max_position_embeddings=context)
    asked, reported, left = [], [], iter(answers)

    def answer(input_ids, streamer, **arguments):
        asked.append(tokenizer.decode(input_ids[0]))
        streamer.put(input_ids)
        for piece in next(left):
            if isinstance(piece, str):
                streamer.put(torch.tensor(tokenizer(f" {piece}").input_ids))
            else:
                raise piece
        streamer.end()

    model.generate = answer
    return Chat(model, tokenizer, SamplingSettings(**settings), system, reported.append), asked, reported


def said(chat, text: str) -> str:
    """What a reply to `text` prints."""
    pieces = []
    chat.reply(text, pieces.append)
    return "".join(pieces)


def test_a_reply_ends_before_a_stop_text():
    chat, _, _ = conversation(answers=(["yes", "user:", "more"],), stop=["user:"])
    assert said(chat, "31 green").strip() == chat.messages[-1]["content"] == "yes"


# ---- The history ---------------------------------------------------------------------------------------------------


def test_the_history_is_kept_until_it_is_reset_and_the_system_message_always():
    chat, asked, _ = conversation(system="Be kind.")
    assert said(chat, "one") == "y e s\n"
    said(chat, "two")
    chat.reset()
    said(chat, "three")
    assert asked == [
        "system: Be kind.\nuser: one\nassistant:",
        "system: Be kind.\nuser: one\nassistant: y e s<|endoftext|>\nuser: two\nassistant:",
        "system: Be kind.\nuser: three\nassistant:",
    ]


def test_the_oldest_turns_are_dropped_with_one_line_when_the_context_is_full():
    chat, asked, reported = conversation(context=100, system="Be kind.", max_new_tokens=20)
    for number in range(4):
        said(chat, f"message {number}")
    assert reported == ["the context of 100 tokens is full: the oldest turn is dropped"] * 2
    assert asked[-1] == (
        "system: Be kind.\nuser: message 2\nassistant: y e s<|endoftext|>\nuser: message 3\nassistant:"
    )
    chat.settings.max_new_tokens = 60  # no more is kept free than a quarter of the context
    assert said(chat, "x" * 30) == "y e s\n"
    assert reported[2:] == ["the context of 100 tokens is full: the oldest 2 turns are dropped"]


def test_a_message_that_cannot_be_read_leaves_the_history_as_it_was():
    chat, asked, _ = conversation(context=100)
    said(chat, "one")
    before = list(chat.messages)
    with pytest.raises(UserError, match="the message has 123 tokens, and the model's context length is 100"):
        said(chat, "x" * 106)
    with pytest.raises(UserError, match=r"the message has characters outside the model's vocabulary: '☃' \(U\+2603\)"):
        said(chat, "snow ☃")
    assert chat.messages == before
    assert len(asked) == 1


@pytest.mark.parametrize(("spoken", "kept"), [(["no", "w"], 2), ([], 0)])
def test_an_interrupted_reply_is_kept_as_far_as_it_was_printed(spoken, kept):
    chat, _, _ = conversation(answers=[[*spoken, KeyboardInterrupt()], ["yes"]])
    pieces = []
    with pytest.raises(KeyboardInterrupt):
        chat.reply("one", pieces.append)
    assert "".join(pieces) == " ".join(spoken) + "\n"
    assert len(chat.messages) == kept
    assert [message["content"] for message in chat.messages[1:]] == ["no w"] * (kept // 2)


def test_an_empty_reply_is_an_empty_line():
    chat, _, _ = conversation(answers=[[]])
    assert said(chat, "one") == "\n"
    assert chat.messages[-1] == {"role": "assistant", "content": ""}


@pytest.mark.parametrize(("own", "ends"), [(None, [1]), (7, [1, 7]), ([7, 1], [1, 7])])
def test_a_reply_ends_at_the_tokens_of_the_model_and_of_the_tokenizer(own, ends):
    chat, _, _ = conversation(max_new_tokens=5, greedy=True)
    chat.model.generation_config.eos_token_id = own
    chat.tokenizer.eos_token = chat.tokenizer.convert_ids_to_tokens(1)
    arguments = chat._arguments({"input_ids": torch.ones((1, 3))})
    assert (arguments["eos_token_id"], arguments["max_new_tokens"], arguments["do_sample"]) == (ends, 5, False)


# ---- The command ---------------------------------------------------------------------------------------------------


def piped(model, text: bytes, *flags, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
    return call(chat_command.main, f"--model={model}", "--greedy", *flags, capsys=capsys)


def test_each_line_of_piped_input_is_answered(talking, monkeypatch, capsys):
    done = piped(talking, b"31 green\n\n/reset\n7 green\n8 green", monkeypatch=monkeypatch, capsys=capsys)
    dropped = "the context of 32 tokens is full: the oldest turn is dropped\n"
    assert done == (0, "bottles!\n" * 3, dropped)


def test_a_mistake_in_piped_input_is_one_line(talking, monkeypatch, capsys):
    for text, told in {"31 ☃": "U+2603", "1" * 99: "context length is 32"}.items():
        code, out, err = piped(talking, text.encode(), monkeypatch=monkeypatch, capsys=capsys)
        assert (code, out, told in err, err.count("\n")) == (2, "", True, 1)
    code, out, err = piped(talking, b"7 green\ncaf\xe9\n", monkeypatch=monkeypatch, capsys=capsys)
    assert (code, out) == (2, "bottles!\n")
    assert "line 2 of standard input is not UTF-8" in err


def test_a_model_without_a_template_is_sent_to_generate(trained, capsys):
    told = ["no chat template", f"gptlite generate --model {trained}"]
    refused(chat_command.main, f"--model={trained}", capsys=capsys, told=told)


def test_a_template_without_a_place_for_a_system_message_says_so(talking, tmp_path, capsys):
    folder = shutil.copytree(talking, tmp_path / "model", ignore=shutil.ignore_patterns("checkpoint-*"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    refusal = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    tokenizer.chat_template = refusal + tokenizer.chat_template
    tokenizer.save_pretrained(folder)
    told = ["no system role", "leave out --system"]
    refused(chat_command.main, f"--model={folder}", "--system=all green", capsys=capsys, told=told)


def test_generate_says_that_a_template_is_not_applied(talking, trained, capsys):
    for model, lines in ((talking, 1), (trained, 0)):
        _, _, err = call(generate.main, f"--model={model}", "--prompt=1", "--max_new_tokens=2", capsys=capsys)
        assert err.count("\n") == lines
        assert (f"gptlite chat --model {model}" in err) == bool(lines)


class Terminal:
    """The command in a process on a pseudo-terminal."""

    def __init__(self, *argv):
        pty = pytest.importorskip("pty")
        self.leader, follower = pty.openpty()
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), follower)
        environment = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "dumb"}
        command = [sys.executable, "-m", "scripts.chat", *map(str, argv)]
        self.process = subprocess.Popen(command, env=environment, start_new_session=True, **streams)
        os.close(follower)

    def type(self, text: str) -> None:
        os.write(self.leader, text.encode())

    def end(self) -> None:
        self.type("\x04")  # Ctrl-D
        assert self.process.wait() == 0
        os.close(self.leader)

    def prints(self, seconds: float) -> bool:
        return bool(select.select([self.leader], [], [], seconds)[0])

    def interrupt(self) -> None:
        """Ctrl-C until something is printed: Python's readline misses a signal that comes while it handles a key."""
        for _ in range(60):
            self.process.send_signal(signal.SIGINT)
            if self.prints(1):
                return

    def read_until(self, end: str) -> str:
        printed = b""
        while not printed.endswith(end.encode()):
            assert self.prints(300), printed
            printed += os.read(self.leader, 1)
        return printed.decode()


def test_a_conversation_on_a_terminal(talking, tmp_path):
    folder = shutil.copytree(talking, tmp_path / "model", ignore=shutil.ignore_patterns("checkpoint-*"))
    terminal = Terminal(f"--model={folder}", "--greedy", "--engine=torch")
    assert "Ctrl-D ends\r\n" in terminal.read_until("> ")
    terminal.type("31 green\n")
    assert "bottles!\r\n" in terminal.read_until("> ")
    terminal.type("31 ☃\n")
    assert "error: the message has characters outside the model's vocabulary" in terminal.read_until("> ")
    terminal.type("31 gr")
    terminal.read_until("31 gr")
    terminal.interrupt()
    terminal.read_until("> ")  # an empty line again
    terminal.type("7 green\n")
    assert "bottles!\r\n" in terminal.read_until("> ")
    terminal.end()


def test_ctrl_c_stops_a_reply_and_not_the_program(trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "model", ignore=shutil.ignore_patterns("checkpoint-*"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "{{ messages[-1].content }}"
    tokenizer.save_pretrained(folder)
    terminal = Terminal(f"--model={folder}", "--max_new_tokens=1000000", "--engine=torch", "--seed=1")
    terminal.read_until("> ")
    terminal.type("12 green\n")
    terminal.read_until("12 green\r\n")
    terminal.read_until(" ")  # the reply has begun
    terminal.process.send_signal(signal.SIGINT)
    terminal.read_until("> ")
    terminal.end()


# ---- What training on conversations teaches ------------------------------------------------------------------------

# SmolLM2's, and the same with marks around what the assistant generates
CHATML = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "MARKED"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONTENT = "{{ message['content'] + '<|im_end|>' + '\n' }}"
MARKS = "{% if message['role'] == 'assistant' %}{% generation %}CONTENT{% endgeneration %}{% else %}CONTENT{% endif %}"
MARKED = CHATML.replace("MARKED", MARKS.replace("CONTENT", CONTENT))
TALK = [
    {"role": "user", "content": "1 and 1?"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "and\n1?"},
    {"role": "assistant", "content": "That is\n3."},
]


@pytest.mark.parametrize("system", [[], [{"role": "system", "content": "Add."}]])
def test_what_the_model_learns_is_what_the_template_marks(system):
    tokenizer = build_bpe_tokenizer(ALPHABET * 9 + "user\nassistant\nsystem\n" * 99, vocab_size=300)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.eos_token = "<|im_end|>"
    messages = [*system, *TALK]
    marked = tokenizer.apply_chat_template(
        messages, chat_template=MARKED, return_dict=True, return_assistant_tokens_mask=True
    )
    tokenizer.chat_template = CHATML.replace("MARKED", CONTENT)
    source = Source("test", [{"messages": messages}] * 2, CONVERSATIONAL)
    source.share_template(tokenizer)
    examples = Examples.of(encode_rows(source, Encoder(tokenizer), validation_fraction=0.5)[0], context=500)
    assert examples.ids == marked["input_ids"]
    assert examples.is_target == list(map(bool, marked["assistant_masks"]))
    assert tokenizer.decode(examples.completion(0)) == "2<|im_end|>\nThat is\n3.<|im_end|>\n"
    labels = EvaluationExamples(examples)[0]["labels"]
    assert labels[labels >= 0].tolist() == examples.completion(0)
