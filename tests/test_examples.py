"""Prompts with completions, and conversations, as ids and batches: `data/examples.py`."""

import pytest
import torch
from helpers import refused, tiny_model
from jinja2 import TemplateError
from tokenizers.processors import TemplateProcessing
from torch.utils.data import DataLoader

from modeling_gptlite.data import formats
from modeling_gptlite.data.examples import EvaluationExamples, Examples, ShuffledExamples, encode_rows
from modeling_gptlite.data.formats import CHAT_TEMPLATE
from modeling_gptlite.data.sources import Source
from modeling_gptlite.data.windows import whole_batch
from modeling_gptlite.training.metrics import evaluate_loss
from scripts import train
from tokenization import build_bpe_tokenizer, build_char_tokenizer
from tokenization.corpus import Encoder


PAIRS = [{"prompt": f"{n} and {n + 1}?", "completion": f" {n + n + 1}!"} for n in range(30)]
TALK = [
    {"role": "system", "content": "Add."},
    {"role": "user", "content": "1 and 1?"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "and 1?"},
    {"role": "assistant", "content": "3"},
]
TALK_TEXT = "system: Add.\nuser: 1 and 1?\nassistant: 2<|endoftext|>\nuser: and 1?\nassistant: 3<|endoftext|>"
ALPHABET = "".join(map(chr, range(32, 127))) + "\n"
TOKENIZERS = {"char": build_char_tokenizer(ALPHABET), "bpe": build_bpe_tokenizer(TALK_TEXT * 9, vocab_size=290)}
every_tokenizer = pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)


def source_of(rows):
    return Source("test", rows, formats.CONVERSATIONAL if "messages" in rows[0] else formats.PROMPT_COMPLETION)


def encode(rows, tokenizer=TOKENIZERS["char"], context=200, validation_fraction=0.1):
    rows = encode_rows(source_of(rows), Encoder(tokenizer), validation_fraction)
    return tuple(Examples.of(split, context) for split in rows)


# ---- Ids and targets -----------------------------------------------------------------------------------------------


@every_tokenizer
def test_only_the_completion_and_its_end_are_targets(tokenizer):
    examples, _ = encode([PAIRS[7]] * 10, tokenizer)
    batch = EvaluationExamples(examples)[0]
    prompt, completion = (tokenizer(PAIRS[7][name]).input_ids for name in ("prompt", "completion"))
    ids = [*prompt, *completion, tokenizer.eos_token_id]
    assert batch["input_ids"].tolist() == ids[:-1]
    assert batch["labels"].tolist() == [-100] * (len(prompt) - 1) + ids[len(prompt) :]
    assert torch.equal(batch["labels"], batch["shift_labels"])
    assert (examples.prompt(0), examples.completion(0)) == (prompt, ids[len(prompt) :])
    assert examples.targets == 9 * len(examples.completion(0))
    assert examples.count_characters(tokenizer) == 9 * len(PAIRS[7]["completion"])


def test_a_character_of_a_completion_that_the_tokenizer_does_not_know_counts_as_one():
    examples, _ = encode([{"prompt": "why?", "completion": " é, é!"}] * 2, validation_fraction=0.5)
    assert examples.count_characters(TOKENIZERS["char"]) == len(" é, é!")


@every_tokenizer
def test_a_conversation_teaches_every_reply_and_nothing_else(tokenizer):
    examples, _ = encode([{"messages": TALK}] * 2, tokenizer, validation_fraction=0.5)
    assert tokenizer.decode(examples.ids) == TALK_TEXT
    assert tokenizer.decode(examples.completion(0)) == " 2<|endoftext|> 3<|endoftext|>"
    assert tokenizer.decode(examples.prompt(0)) == "system: Add.\nuser: 1 and 1?\nassistant:"


IN_PARTS = [
    {**message, "content": [{"type": "text", "text": message["content"][:2]}, {"type": "text", "text": rest}]}
    for message in TALK
    for rest in [message["content"][2:]]
]
PLAIN = (
    "{% for m in messages %}<{{ m['role'] + '>' + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, PLAIN], ids=["ours", "one that takes text only"])
def test_content_in_text_parts_is_read_as_their_text(template):
    whole, parts = (source_of([{"messages": messages}]) for messages in (TALK, IN_PARTS))
    whole.chat_template = parts.chat_template = template
    assert list(parts.parts({"messages": IN_PARTS}, 1)) == list(whole.parts({"messages": TALK}, 1))


def test_the_default_template_renders_text_parts_and_refuses_others():
    tokenizer = build_char_tokenizer(ALPHABET)
    tokenizer.chat_template = CHAT_TEMPLATE
    for messages in (TALK, IN_PARTS):
        assert tokenizer.apply_chat_template(messages, tokenize=False) == TALK_TEXT
    with pytest.raises(TemplateError, match="text only"):
        tokenizer.apply_chat_template([{"role": "user", "content": [{"type": "image"}]}])


def test_the_default_template_marks_what_the_assistant_says_for_other_trainers():
    tokenizer = build_char_tokenizer(ALPHABET)
    tokenizer.chat_template = CHAT_TEMPLATE
    encoded = tokenizer.apply_chat_template(TALK, return_dict=True, return_assistant_tokens_mask=True)
    replies = [i for i, own in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if own]
    assert tokenizer.decode(replies) == " 2<|endoftext|> 3<|endoftext|>"


def test_a_template_of_the_tokenizers_own_is_used_and_one_is_given_to_a_tokenizer_without():
    own, bare = build_char_tokenizer(ALPHABET), build_char_tokenizer(ALPHABET)
    own.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}" + (
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    for tokenizer, text in ((own, "<user>1 and 1?<assistant>2<|endoftext|>"), (bare, TALK_TEXT[13:53])):
        source = source_of([{"messages": TALK[1:3]}] * 2)
        source.share_template(tokenizer)
        train_examples = Examples.of(encode_rows(source, Encoder(tokenizer), 0.5)[0], 200)
        assert tokenizer.decode(train_examples.ids) == text
        assert tokenizer.apply_chat_template(TALK[1:3], tokenize=False) in (text, text.removesuffix("<|endoftext|>"))


@pytest.mark.parametrize(("reply", "content"), [(" 2<|endoftext|>", "2"), ("<|endoftext|>", "")])
def test_a_reply_is_parsed_even_if_it_is_empty(reply, content):
    tokenizer = build_char_tokenizer(ALPHABET)
    source_of([{"messages": TALK[1:3]}]).share_template(tokenizer)
    message = tokenizer.parse_response(reply, prefix="user: 1 and 1?\nassistant:")
    assert message == {"role": "assistant", "content": content}


def test_what_a_tokenizer_has_to_know_holds_the_templates_characters_and_no_special_token():
    assert "".join(source_of([{"messages": TALK}]).texts()) == TALK_TEXT.replace("<|endoftext|>", "")
    assert "".join(source_of(PAIRS[:2]).texts()) == "0 and 1? 1!1 and 2? 3!"


WITH_TOKENS = (
    "{{ bos_token + 'Hi!' }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.mark.parametrize("template", [WITH_TOKENS, {"default": WITH_TOKENS, "tool_use": "tools"}], ids=["one", "two"])
def test_a_template_may_name_the_special_tokens_and_the_default_of_several_is_taken(template):
    tokenizer = build_char_tokenizer(ALPHABET)
    tokenizer.chat_template = template
    source = source_of([{"messages": TALK[1:3]}] * 2)
    source.share_template(tokenizer)
    train_examples = Examples.of(encode_rows(source, Encoder(tokenizer), 0.5)[0], 200)
    assert tokenizer.decode(train_examples.ids) == tokenizer.apply_chat_template(TALK[1:3], tokenize=False)


def test_turns_that_end_with_a_token_of_their_own_are_followed_by_the_end_of_text_once():
    tokenizer = build_char_tokenizer(ALPHABET)
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}|{% endfor %}" + (
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    source = source_of([{"messages": TALK[1:]}] * 2)
    source.share_template(tokenizer)
    train_examples = Examples.of(encode_rows(source, Encoder(tokenizer), 0.5)[0], 200)
    text = "<user>1 and 1?|<assistant>2|<user>and 1?|<assistant>3|"
    assert tokenizer.decode(train_examples.ids) == text + "<|endoftext|>"
    assert tokenizer.decode(train_examples.completion(0)) == "2|3|<|endoftext|>"


@every_tokenizer
def test_too_long_examples_lose_their_beginning_or_are_left_out(tokenizer):
    long_prompt = {"prompt": "x" * 500 + " why?", "completion": " no"}
    long_completion = {"prompt": "why?", "completion": "x y" * 500}
    examples, validation = encode([long_prompt, long_completion, PAIRS[0], PAIRS[1]], tokenizer, 12, 0.25)
    assert (len(examples), examples.truncated, examples.skipped, len(validation)) == (2, 1, 1, 1)
    whole = [*tokenizer(long_prompt["prompt"]).input_ids, *tokenizer(" no").input_ids, tokenizer.eos_token_id]
    assert examples.ids[:13] == whole[-13:]
    assert tokenizer.decode(examples.completion(0)) == " no<|endoftext|>"


def test_a_completion_that_just_fits_is_kept_whole():
    for length, kept in ((7, 2), (8, 1)):  # and the end of text, and one token to predict them from
        rows = [{"prompt": "abc", "completion": "x" * length}, PAIRS[0], {"prompt": "?", "completion": "!"}]
        examples, _ = encode(rows, context=8, validation_fraction=0.3)
        assert len(examples) == kept
    assert examples.skipped == 1


def test_an_empty_prompt_begins_with_the_beginning_of_text():
    tokenizer = TOKENIZERS["char"]
    examples, _ = encode([{"prompt": "", "completion": "yes"}] * 2, validation_fraction=0.5)
    assert tokenizer.decode(examples.ids) == "<|endoftext|>yes<|endoftext|>"
    assert tokenizer.decode(examples.completion(0)) == "yes<|endoftext|>"


@pytest.mark.parametrize("prompt", ["why?", "<|endoftext|>why?"])
def test_a_prompt_begins_as_the_tokenizer_begins_a_text_and_does_not_end(prompt):
    tokenizer = build_char_tokenizer(ALPHABET)
    end = [("<|endoftext|>", tokenizer.eos_token_id)]
    template = TemplateProcessing(single="<|endoftext|> $A <|endoftext|>", special_tokens=end)
    tokenizer.backend_tokenizer.post_processor = template
    examples, _ = encode([{"prompt": prompt, "completion": " no"}] * 2, tokenizer, validation_fraction=0.5)
    assert tokenizer.decode(examples.ids) == "<|endoftext|>why? no<|endoftext|>"


def test_the_split_is_by_rows():
    tokenizer = TOKENIZERS["char"]
    examples, validation = encode(PAIRS)
    assert (len(examples), len(validation)) == (27, 3)
    prompts = [tokenizer.decode(split.prompt(0)) for split in (examples, validation)]
    assert prompts == [PAIRS[0]["prompt"], PAIRS[27]["prompt"]]


# ---- Batches -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_validation_loss_is_that_of_each_example_alone(batch_size):
    examples, _ = encode([*PAIRS[:9], *PAIRS[20:]], context=30)
    model = tiny_model("modern-1m", vocab_size=len(TOKENIZERS["char"]))
    losses = []
    for index in range(len(examples)):
        prompt, completion = examples.prompt(index), examples.completion(index)
        with torch.no_grad():
            log_p = model(torch.tensor([prompt + completion])).logits[0].log_softmax(-1)
        losses += [-log_p[len(prompt) - 1 + i, token].item() for i, token in enumerate(completion)]
    assert len(losses) == examples.targets
    expected = sum(losses) / len(losses)
    assert evaluate_loss(model, EvaluationExamples(examples), batch_size) == pytest.approx(expected, abs=1e-5)


def test_every_epoch_has_every_example_once_in_an_order_of_its_own():
    examples, _ = encode(PAIRS)
    shuffled = ShuffledExamples(examples, samples=3 * 27, seed=1)
    every = [tuple(e["labels"].tolist()) for e in EvaluationExamples(examples)]
    epochs = [[tuple(shuffled[i]["labels"].tolist()) for i in range(e * 27, e * 27 + 27)] for e in range(3)]
    assert all(sorted(epoch) == sorted(every) for epoch in epochs)
    assert len({tuple(order) for order in [every, *epochs]}) == 4


def test_a_training_example_depends_on_seed_and_index_alone():
    examples, _ = encode(PAIRS)

    def drawn(samples, seed, batch_size):
        loader = DataLoader(ShuffledExamples(examples, samples, seed), batch_size, collate_fn=whole_batch)
        return [row[row >= 0].tolist() for batch in loader for row in batch["labels"]]

    assert drawn(60, 7, 1) == drawn(60, 7, 13) == drawn(200, 7, 64)[:60]
    assert drawn(60, 7, 1) != drawn(60, 8, 1)
    later = ShuffledExamples(examples, 60, 7)
    assert later[58]["labels"][later[58]["labels"] >= 0].tolist() == drawn(60, 7, 1)[58]


# ---- Rows ----------------------------------------------------------------------------------------------------------

BAD_ROWS = {
    "not JSON": ('{"prompt": "a", "completion": "b"}\n{"prompt": ', ["line 2", "not JSON"]),
    "not an object": ('{"prompt": "a", "completion": "b"}\n[1]', ["line 2", "not a JSON object"]),
    "null": ('{"messages": [{"role": "user", "content": null}]}', ["row 1", "message 1 is null"]),
    "half a character": ('{"prompt": "a", "completion": "\\ud83c"}', ["rows.jsonl, row 1", "ud83c", "surrogates"]),
    "half a character in text": ('{"text": "a\\ud83c"}', ["rows.jsonl, row 1", "ud83c", "surrogates"]),
    "no completion": ('{"prompt": "a", "completion": "b"}\n{"prompt": "a"}', ["row 2", "completion"]),
    "empty completion": ('{"prompt": "a", "completion": ""}', ["row 1", "empty"]),
    "no text": ('{"prompt": "a", "completion": 3}', ["row 1", "must be text"]),
    "no reply": ('{"messages": [{"role": "user", "content": "a"}]}', ["row 1", "assistant"]),
    "no column": ('{"question": "a", "answer": "b"}', ["'text'", "question, answer"]),
    "no row": ("\n", ["empty"]),
    "one row": ('{"prompt": "a", "completion": "b"}', ["left for training"]),
    "too long": (('{"prompt": "a", "completion": "' + "b" * 200 + '"}\n') * 9, ["left for training", "too long"]),
}


@pytest.mark.parametrize(("text", "told"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_bad_rows_are_refused_in_one_line(text, told, tmp_path, capsys):
    (tmp_path / "rows.jsonl").write_text(text)
    argv = [f"--train_file={tmp_path / 'rows.jsonl'}", f"--output_dir={tmp_path / 'out'}"]
    refused(train.main, *argv, capsys=capsys, told=told)
    assert not (tmp_path / "out").exists()
