"""What holds for every text: hypothesis looks for one that breaks it."""

from helpers import TEXT
from hypothesis import given, settings
from hypothesis import strategies as st

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
