"""Tokenizers of characters, byte-level BPE or words; text to packed ids.

tokenizer = build_char_tokenizer("to be or not to be")
ids = encode_corpus("not to be", tokenizer)
"""

from .builders import (
    add_characters,
    build_bpe_tokenizer,
    build_char_tokenizer,
    build_word_tokenizer,
    char_tokenizer,
)
from .corpus import describe_characters, encode_corpus, tokenizer_state, unknown_characters


__all__ = [
    "add_characters",
    "build_bpe_tokenizer",
    "build_char_tokenizer",
    "build_word_tokenizer",
    "char_tokenizer",
    "describe_characters",
    "encode_corpus",
    "tokenizer_state",
    "unknown_characters",
]
