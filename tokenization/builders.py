"""Three tokenizers, each a plain `PreTrainedTokenizerFast`: `AutoTokenizer` loads them without this package.

    tokenizer = build_char_tokenizer("to be or not to be")

The vocabulary of each ends with `<|endoftext|>` (bos and eos), `<|pad|>` and `<|unk|>`. They pad on the left, because
generation continues at the right end, and add no special tokens to a text.
"""

import json
from collections.abc import Iterable

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from .corpus import is_character_tokenizer, unknown_characters


END_OF_TEXT, PAD, UNKNOWN = SPECIAL_TOKENS = ("<|endoftext|>", "<|pad|>", "<|unk|>")
_CODE_POINTS = 0x110000
_WORD_BYTES = 256


def build_char_tokenizer(
    texts: str | Iterable[str], special_tokens: bool = True, byte_fallback: bool = False
) -> PreTrainedTokenizerFast:
    """One token per character (Unicode code point), ids in code-point order: tiny Shakespeare's newline is 0.

    Args:
        texts: The text, or pieces of it; the vocabulary is the set of its characters.
        special_tokens: Append the three special tokens. Without them, a character outside the vocabulary is an error.
        byte_fallback: Append 256 byte tokens. A character outside the vocabulary is encoded as its UTF-8 bytes.

    Raises:
        ValueError: The text is empty.
    """
    return _char_tokenizer(_distinct_characters(texts), special_tokens, byte_fallback)


def char_tokenizer(tokens: list[str]) -> PreTrainedTokenizerFast:
    """The character tokenizer whose ids 0, 1, 2, ... are these tokens; the last three may be the special tokens.

    Raises:
        ValueError: A token is not a single character, or occurs twice.
    """
    special_tokens = tuple(tokens[-len(SPECIAL_TOKENS) :]) == SPECIAL_TOKENS
    characters = tokens[: -len(SPECIAL_TOKENS)] if special_tokens else tokens
    for token in characters:
        if not isinstance(token, str) or len(token) != 1:
            raise ValueError(f"the tokens of a character tokenizer are single characters, got {token!r}")
    if len(set(characters)) < len(characters):
        raise ValueError("a character occurs twice in the tokens")
    return _char_tokenizer(characters, special_tokens)


def _char_tokenizer(
    characters: list[str], special_tokens: bool, byte_fallback: bool = False
) -> PreTrainedTokenizerFast:
    if not characters:
        raise ValueError("cannot build a character vocabulary from an empty text")
    tokens = characters + list(SPECIAL_TOKENS if special_tokens else ())
    if byte_fallback:
        tokens += [f"<0x{byte:02X}>" for byte in range(256)]
    vocabulary = {token: index for index, token in enumerate(tokens)}

    # BPE without merges is several times faster than a word-level model with a regular expression that splits the text.
    # If the unknown token is not in the vocabulary, an unknown character is an error.
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[], unk_token=UNKNOWN, byte_fallback=byte_fallback))
    if byte_fallback:
        tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    else:
        tokenizer.decoder = decoders.Fuse()
    return _wrap(tokenizer, special_tokens)


def add_characters(tokenizer: PreTrainedTokenizerFast, texts: str | Iterable[str]) -> list[str]:
    """Add the characters of `texts` that a character tokenizer lacks, with ids after all others, which do not change.

    Returns:
        The new characters in code-point order; none if the tokenizer is not a character tokenizer.
    """
    if not is_character_tokenizer(tokenizer):
        return []
    new = sorted(unknown_characters(texts, tokenizer))
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    # With the tokens that were added beside the model: when a saved tokenizer is loaded, those that its model lacks get
    # the ids after the model's, whatever their ids were.
    vocabulary = state["model"]["vocab"] = tokenizer.get_vocab()
    first = max(vocabulary.values()) + 1
    vocabulary |= {character: first + index for index, character in enumerate(new)}
    tokenizer.backend_tokenizer.model = Tokenizer.from_str(json.dumps(state)).model
    return new


def build_bpe_tokenizer(texts: str | Iterable[str], vocab_size: int = 1024) -> PreTrainedTokenizerFast:
    """Byte-level BPE as in GPT-2, trained on `texts`; lossless for every string.

    Longer words than 256 bytes are cut while merges are learned.

    Raises:
        ValueError: `vocab_size` is smaller than the 256 bytes and the three special tokens.
    """
    smallest = 256 + len(SPECIAL_TOKENS)
    if vocab_size < smallest:
        raise ValueError(f"a byte-level vocabulary needs at least {smallest} tokens, got vocab_size={vocab_size}")
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    # The time to learn merges grows with the square of a word's length, and text without spaces is one word.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([byte_level, pre_tokenizers.FixedLength(_WORD_BYTES)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_pieces(texts), trainer)
    tokenizer.pre_tokenizer = byte_level
    return _wrap(tokenizer, special_tokens=True)


def build_word_tokenizer(texts: str | Iterable[str], vocab_size: int = 8192) -> PreTrainedTokenizerFast:
    """The most frequent words, runs of punctuation and single white-space characters, `vocab_size` with special tokens.

    Lossless for text of these words; every other word becomes `<|unk|>`.

    Raises:
        ValueError: `vocab_size` leaves no room for a word besides the three special tokens.
    """
    if vocab_size <= len(SPECIAL_TOKENS):
        raise ValueError(f"a word vocabulary needs more than {len(SPECIAL_TOKENS)} tokens, got {vocab_size}")
    tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|[^\w\s]+|\s"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    trainer = trainers.WordLevelTrainer(vocab_size=vocab_size - len(SPECIAL_TOKENS), show_progress=False)
    tokenizer.train_from_iterator(_pieces(texts), trainer)
    words = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    vocabulary = {token: index for index, token in enumerate([*dict(words), *SPECIAL_TOKENS])}
    tokenizer.model = models.WordLevel(vocabulary, unk_token=UNKNOWN)
    return _wrap(tokenizer, special_tokens=True)


def _pieces(texts: str | Iterable[str]) -> Iterable[str]:
    return [texts] if isinstance(texts, str) else texts


def _distinct_characters(texts: str | Iterable[str]) -> list[str]:
    seen = np.zeros(_CODE_POINTS, dtype=bool)
    for piece in _pieces(texts):
        seen[np.frombuffer(piece.encode("utf-32-le"), dtype=np.uint32)] = True
    return [chr(code_point) for code_point in np.flatnonzero(seen)]


def _wrap(tokenizer: Tokenizer, special_tokens: bool) -> PreTrainedTokenizerFast:
    names = {}
    if special_tokens:
        tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL_TOKENS])
        names = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "pad_token": PAD, "unk_token": UNKNOWN}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
        **names,
    )
