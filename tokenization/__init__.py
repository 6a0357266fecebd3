"""Tokenizers for GPTLite: characters, byte-level BPE or words, and text to packed ids."""

from .builders import (
    add_characters,
    build_bpe_tokenizer,
    build_char_tokenizer,
    build_word_tokenizer,
    char_tokenizer,
)
from .corpus import describe_characters, encode_corpus, unknown_characters


__all__ = [
    "add_characters",
    "build_bpe_tokenizer",
    "build_char_tokenizer",
    "build_word_tokenizer",
    "char_tokenizer",
    "describe_characters",
    "encode_corpus",
    "unknown_characters",
]
