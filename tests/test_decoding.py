"""`decoding.py`: one default of sampling for all that generates, and one way in which a prompt begins."""

import copy

import pytest
from helpers import tiny_model, tokenizer_of_kind
from tokenizers.processors import TemplateProcessing

from modeling_gptlite.data.encode import encode
from modeling_gptlite.data.sources import Source
from modeling_gptlite.decoding import SAMPLING, first_token, plain_ids, prompt_ids, sampling_defaults
from modeling_gptlite.evaluation.evaluate import EvaluationSettings
from modeling_gptlite.page.settings import SETTINGS
from modeling_gptlite.page.tracing import TracedModel
from modeling_gptlite.runs.generate import read_prompt


def test_samples_evaluation_the_page_and_a_saved_model_sample_alike():
    saved = sampling_defaults(tokenizer_of_kind("char"))
    assert {name: getattr(saved, name) for name in SAMPLING} == SAMPLING
    page = {name: SETTINGS[name].value for name in ("temperature", "top_k")}
    assert page | {"do_sample": True} == SAMPLING
    assert EvaluationSettings().temperature == SAMPLING["temperature"]


def tokenizer_with(template: str):
    """One that puts special tokens around each text, and whose tokens for its beginning and its end differ."""
    tokenizer = copy.deepcopy(tokenizer_of_kind("bpe"))
    tokenizer.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})
    special = [("<s>", tokenizer.bos_token_id), ("</s>", tokenizer.eos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=special)
    return tokenizer


@pytest.mark.parametrize("prompt", ["12 green", "<s>12 green"])
@pytest.mark.parametrize("template", ["<s> $A", "<s> $A </s>"])
def test_a_prompt_begins_once_as_its_tokenizer_begins_texts_and_does_not_end(template, prompt):
    tokenizer = tokenizer_with(template)
    inside = tokenizer("12 green", add_special_tokens=False)["input_ids"]
    expected = [tokenizer.bos_token_id, *inside]
    assert prompt_ids(tokenizer, prompt) == expected
    model = tiny_model("modern-1m", vocab_size=len(tokenizer))
    assert read_prompt(model, tokenizer, prompt)["input_ids"].tolist() == [expected]
    assert TracedModel("", model, tokenizer).encode(prompt) == expected


def test_a_tokenizer_that_ends_texts_with_a_separator_does_not_end_a_prompt():
    tokenizer = tokenizer_with("<s> $A </s>")
    tokenizer.bos_token, tokenizer.eos_token, tokenizer.sep_token = None, None, "</s>"
    assert prompt_ids(tokenizer, "12 green") == [
        tokenizer.convert_tokens_to_ids("<s>"),
        *plain_ids(tokenizer, "12 green"),
    ]


def test_an_unfinished_run_of_an_earlier_version_keeps_its_windows():
    text = encode(Source("text", [["12 green bottles " * 20]]), tokenizer_with("<s> $A"), 0.5, begins=False)
    assert text.begin is None


def test_windows_begin_as_their_tokenizer_begins_texts(tmp_path):
    tokenizer = tokenizer_with("<s> $A")
    text = encode(Source("text", [["12 green bottles standing on the wall " * 20]]), tokenizer, 0.5)
    data = text.cut(8, windows_per_step=2, steps=3)
    for windows in (data.train, data.validation):
        assert set(windows.__getitems__([0, 1])["input_ids"][:, 0].tolist()) == {tokenizer.bos_token_id}
    assert str(tokenizer.bos_token_id) in data.facts["windows"]


@pytest.mark.parametrize("template", ["$A", "$A </s>"])
def test_a_tokenizer_that_only_ends_texts_begins_none(template):
    tokenizer = tokenizer_with(template)
    tokenizer.bos_token = tokenizer.eos_token
    assert first_token(tokenizer) is None


@pytest.mark.parametrize(
    ("bos", "eos", "expected"), [("<s>", "</s>", "<s>"), (None, "</s>", "</s>"), (None, None, None)]
)
def test_an_empty_prompt_is_what_begins_a_text_or_else_what_ends_one(bos, eos, expected):
    tokenizer = tokenizer_with("$A")
    tokenizer.bos_token, tokenizer.eos_token = bos, eos
    ids = [] if expected is None else [tokenizer.convert_tokens_to_ids(expected)]
    assert prompt_ids(tokenizer, "") == ids
    assert sampling_defaults(tokenizer).bos_token_id == (ids[0] if ids else None)
