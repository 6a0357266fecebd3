"""Text to packed ids: one flat array of token ids, fast, in bounded memory, equal to what the tokenizer itself gives.

ids = encode_corpus(open("book.txt", encoding="utf-8", newline=""), tokenizer)
"""

import hashlib
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase


_PIECE_CHARACTERS = 1 << 16  # handed at a time to a tokenizer without a look-up table
_CODE_POINTS = 0x110000
_MISSING = np.uint32(0xFFFFFFFF)


def encode_corpus(
    texts: str | Iterable[str], tokenizer: PreTrainedTokenizerBase, cache_dir: str | os.PathLike | None = None
) -> np.ndarray:
    """The token ids of `texts` joined, as one flat array: uint16, or uint32 for a vocabulary over 65,536.

    No special tokens are added. The ids equal `tokenizer("".join(texts), add_special_tokens=False)` for every
    tokenizer that treats a text cut before white space like the whole (this package's own, GPT-2's).

    Args:
        texts: The text, or pieces of it. With `cache_dir` they are read twice, so not a generator.
        tokenizer: Any tokenizer of transformers; character tokenizers take a look-up table.
        cache_dir: Keep the ids there in a file named after text and tokenizer, mapped into memory, and use it again.

    Raises:
        ValueError: a character has no id and the tokenizer no unknown token.
        TypeError: `texts` can be read only once, and `cache_dir` is given.
    """
    pieces = [texts] if isinstance(texts, str) else texts
    dtype = np.dtype(np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32)
    if cache_dir is None:
        arrays = [np.asarray(array, dtype=dtype) for array in _encode_pieces(pieces, tokenizer)]
        return np.concatenate(arrays) if arrays else np.empty(0, dtype)
    if iter(pieces) is pieces:
        raise TypeError("with a cache_dir the texts are read twice: give a list, not an iterator")

    path = Path(cache_dir) / f"{_fingerprint(pieces, tokenizer)}.{dtype.name}"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_atomically(path, (array.astype(dtype, copy=False) for array in _encode_pieces(pieces, tokenizer)))
    if path.stat().st_size == 0:
        return np.empty(0, dtype)
    return np.memmap(path, dtype=dtype, mode="r")


def unknown_characters(texts: str | Iterable[str], tokenizer: PreTrainedTokenizerBase) -> Counter:
    """What of `texts` the tokenizer has no token for, with counts: characters, or words for a word tokenizer."""
    unknown = Counter()
    pieces = [texts] if isinstance(texts, str) else texts
    table = _CharacterTable.of(tokenizer)
    if table is not None:
        for piece in table.whole_pieces(pieces):
            unknown.update(table.missing(piece))
    elif tokenizer.unk_token_id is not None:
        for piece in itertools.chain.from_iterable(_cut_before_white_space(pieces)):
            encoded = tokenizer(piece, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            for token_id, (start, stop) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
                if token_id == tokenizer.unk_token_id and piece[start:stop] != tokenizer.unk_token:
                    unknown[piece[start:stop]] += 1
    return unknown


def is_character_tokenizer(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether it is one token per character, and has nothing to spell an unknown one with."""
    table = _CharacterTable.of(tokenizer)
    return table is not None and not table.byte_fallback


def describe_characters(characters: Iterable[str], most: int = 8) -> str:
    """Characters as a person can read them: `'é' (U+00E9), '\\u200b' (U+200B)`."""
    characters = list(characters)
    named = [f"{c!r} (U+{ord(c):04X})" if len(c) == 1 else repr(c) for c in characters[:most]]
    more = f" and {len(characters) - most} more" if len(characters) > most else ""
    return ", ".join(named) + more


class _CharacterTable:
    """Code point to id, for tokenizers that are one token per character and nothing else."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocabulary: dict[str, int], byte_fallback: bool):
        self.tokenizer = tokenizer
        self.byte_fallback = byte_fallback
        self.ids = np.full(_CODE_POINTS, _MISSING, dtype=np.uint32)
        for character, token_id in vocabulary.items():
            self.ids[ord(character)] = token_id
        # Text within Latin-1 goes through bytes.translate, at memory speed.
        small = {ord(c): i for c, i in vocabulary.items() if ord(c) < 256 and i < 256}
        self.small_known = bytes(small)
        self.small_ids = bytes(small.get(code, 0) for code in range(256))
        added = sorted(tokenizer.get_added_vocab(), key=len, reverse=True)
        self.added = re.compile(f"({'|'.join(map(re.escape, added))})") if added else None
        self.longest_added = max(map(len, added), default=1)

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> "_CharacterTable | None":
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None or backend.normalizer is not None or backend.pre_tokenizer is not None:
            return None
        model = json.loads(backend.to_str())["model"]
        if model["type"] != "BPE" or model["merges"]:
            return None
        added = tokenizer.get_added_vocab()
        tokens = {token: i for token, i in model["vocab"].items() if token not in added}
        characters = {token: i for token, i in tokens.items() if len(token) == 1}
        others = tokens.keys() - characters.keys()
        if any(not re.fullmatch(r"<0x[0-9A-F]{2}>", token) for token in others):
            return None
        return cls(tokenizer, characters, byte_fallback=bool(others))

    def encode(self, text: str) -> Iterator[np.ndarray]:
        """The ids of `text`, special tokens written out in it included."""
        for index, part in enumerate(self.added.split(text) if self.added else [text]):
            if index % 2:
                yield np.array([self.tokenizer.convert_tokens_to_ids(part)])
            elif part:
                yield self._encode_plain(part)

    def _encode_plain(self, text: str) -> np.ndarray:
        try:
            raw = text.encode("latin-1")
            if not raw.translate(None, self.small_known):  # nothing is left when the known characters are deleted
                return np.frombuffer(raw.translate(self.small_ids), dtype=np.uint8)
        except UnicodeEncodeError:
            pass
        ids = self.ids[np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)]
        missing = ids == _MISSING
        if not missing.any():
            return ids
        if self.byte_fallback:
            return np.array(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        if self.tokenizer.unk_token_id is None:
            raise ValueError(f"not in the vocabulary: {describe_characters(sorted(self.missing(text)))}")
        return np.where(missing, np.uint32(self.tokenizer.unk_token_id), ids)

    def missing(self, text: str) -> Counter:
        parts = self.added.split(text)[::2] if self.added else [text]
        codes = np.frombuffer("".join(parts).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        codes, counts = np.unique(codes[self.ids[codes] == _MISSING], return_counts=True)
        return Counter({chr(code): int(count) for code, count in zip(codes, counts, strict=True)})

    def whole_pieces(self, pieces: Iterable[str]) -> Iterator[str]:
        """`pieces`, cut so that no special token written out in the text is divided."""
        text = ""
        for piece in pieces:
            text += piece
            cut = len(text) - self.longest_added + 1
            for match in self.added.finditer(text, max(0, cut - self.longest_added)) if self.added else ():
                if match.start() < cut < match.end():
                    cut = match.start()
            if cut > 0:
                yield text[:cut]
                text = text[cut:]
        if text:
            yield text


def _encode_pieces(pieces: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[np.ndarray]:
    table = _CharacterTable.of(tokenizer)
    if table is not None:
        for piece in table.whole_pieces(pieces):
            yield from table.encode(piece)
        return
    for batch in _cut_before_white_space(pieces):
        encoded = tokenizer(batch, add_special_tokens=False, return_attention_mask=False, verbose=False)
        yield from (np.array(ids, dtype=np.uint32) for ids in encoded["input_ids"])


def _cut_before_white_space(pieces: Iterable[str]) -> Iterator[list[str]]:
    """Batches of short texts; a pre-tokenizer finds the same words in them as in the whole."""
    text = ""
    for piece in pieces:
        text += piece
        batch, start = [], 0
        while len(text) - start > _PIECE_CHARACTERS:
            cut = _last_word_end(text, start, start + _PIECE_CHARACTERS)
            if cut == start:
                cut = _last_word_end(text, start, len(text))  # one very long word, or white space
            if cut == start:
                break
            batch.append(text[start:cut])
            start = cut
        text = text[start:]
        if batch:
            yield batch
    if text:
        yield [text]


def _last_word_end(text: str, start: int, stop: int) -> int:
    for cut in range(stop - 1, start, -1):
        if text[cut] in " \t\r\n" and not text[cut - 1].isspace():
            return cut
    return start


def _fingerprint(pieces: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> str:
    digest = hashlib.blake2b(tokenizer.backend_tokenizer.to_str().encode(), digest_size=16)
    for piece in pieces:
        digest.update(piece.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _write_atomically(path: Path, arrays: Iterable[np.ndarray]) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        with open(partial, "wb") as file:
            for array in arrays:
                array.tofile(file)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
