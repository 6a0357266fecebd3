"""What holds for every text, configuration and prompt: hypothesis looks for one that breaks it."""

import pytest
import torch
from helpers import ARCHITECTURES, TEXT, tiny_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modeling_gptlite import GPTLiteConfig
from tokenization import build_bpe_tokenizer, build_char_tokenizer, build_word_tokenizer, encode_corpus


ALPHABET = "".join(sorted({*TEXT, *"é漢🎉\u0301\u200b\u202e\x1b\x00\r\t \u2028"}))
CHAR = build_char_tokenizer(ALPHABET)
BYTES = build_char_tokenizer(ALPHABET, byte_fallback=True)
BPE = build_bpe_tokenizer([TEXT], 300)
WORD = build_word_tokenizer([TEXT], 60)

any_text = st.text(max_size=200)  # any Unicode, without lone surrogates, which UTF-8 has not either
known_text = st.text(alphabet=ALPHABET, max_size=200)
quickly = settings(max_examples=60, deadline=None, derandomize=True)


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@quickly
@given(known_text)
def test_a_character_tokenizer_gives_back_every_text_over_its_vocabulary(text):
    assert CHAR.decode(ids(CHAR, text)) == text
    assert len(ids(CHAR, text)) == len(text)


@quickly
@given(any_text)
def test_bytes_give_back_every_text(text):
    for tokenizer in (BYTES, BPE):
        assert tokenizer.decode(ids(tokenizer, text)) == text


@quickly
@given(any_text)
def test_no_character_is_dropped(text):
    assert len(ids(CHAR, text)) == len(text)
    assert all((i == CHAR.unk_token_id) == (c not in ALPHABET) for i, c in zip(ids(CHAR, text), text, strict=True))


@quickly
@given(st.lists(any_text, max_size=5))
def test_packed_ids_are_the_tokenizers_own_however_the_text_is_cut(pieces):
    for tokenizer in (CHAR, BYTES):
        assert encode_corpus(pieces, tokenizer).tolist() == ids(tokenizer, "".join(pieces))


@quickly
@given(any_text)
def test_packed_ids_are_the_tokenizers_own(text):
    for tokenizer in (BPE, WORD):
        assert encode_corpus(text, tokenizer).tolist() == ids(tokenizer, text)


configurations = st.fixed_dictionaries(
    {
        "vocab_size": st.integers(1, 1 << 20),
        "num_hidden_layers": st.integers(1, 64),
        "num_attention_heads": st.sampled_from([1, 2, 4, 8]),
        "hidden_size": st.sampled_from([16, 48, 64, 1024]),
        "max_position_embeddings": st.integers(1, 1 << 17),
        "position_embedding_type": st.sampled_from(["rope", "learned"]),
        "norm_type": st.sampled_from(["rmsnorm", "layernorm"]),
        "norm_eps": st.floats(1e-12, 1e-2),
        "qk_norm": st.booleans(),
        "mlp_type": st.sampled_from(["gated", "plain"]),
        "hidden_act": st.sampled_from(["relu", "silu", "gelu", "gelu_new"]),
        "lm_head_bias": st.booleans(),
        "tie_word_embeddings": st.booleans(),
        "attention_dropout": st.floats(0, 0.9),
        "initializer_range": st.floats(1e-4, 1.0),
        "eos_token_id": st.none() | st.integers(0, 10) | st.lists(st.integers(0, 10), min_size=1, max_size=3),
    }
)


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fields=configurations)
def test_a_configuration_survives_saving_and_loading(fields, tmp_path):
    config = GPTLiteConfig(**fields)
    config.save_pretrained(tmp_path)
    loaded = GPTLiteConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert {name: getattr(loaded, name) for name in fields} == fields


MODELS = {preset: tiny_model(preset) for preset in ARCHITECTURES}
prompts = st.lists(st.integers(0, 64), min_size=1, max_size=50)  # beyond the context of 32, too


@pytest.mark.parametrize("preset", ARCHITECTURES)
@settings(max_examples=8, deadline=None, derandomize=True)
@given(prompt=prompts, length=st.integers(1, 40), seed=st.integers(0, 1 << 31))
def test_generated_text_begins_with_its_prompt_has_its_length_and_repeats_with_its_seed(preset, prompt, length, seed):
    texts = []
    for _ in range(2):
        torch.manual_seed(seed)
        texts.append(MODELS[preset].generate(torch.tensor([prompt]), max_new_tokens=length, do_sample=True)[0].tolist())
    assert texts[0] == texts[1]
    assert texts[0][: len(prompt)] == prompt
    assert len(texts[0]) == len(prompt) + length


@pytest.mark.parametrize("preset", ARCHITECTURES)
@settings(max_examples=5, deadline=None, derandomize=True)
@given(batch=st.lists(prompts, min_size=2, max_size=4))
def test_a_prompt_in_a_batch_is_continued_as_it_is_alone(preset, batch):
    model, longest = MODELS[preset], max(map(len, batch))
    padded = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in batch])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in batch])
    settings = {"max_new_tokens": 12, "do_sample": False}
    together = model.generate(padded, attention_mask=mask, **settings)[:, longest:]
    for row, prompt in zip(together, batch, strict=True):
        alone = model.generate(torch.tensor([prompt]), **settings)[0, len(prompt) :]
        assert row.tolist() == alone.tolist()
