"""Text to packed ids: one flat array of token ids, equal to what the tokenizer returns, in bounded memory.

ids = encode_corpus("to be or not to be", tokenizer)

encoder = Encoder(tokenizer)  # for text that does not fit in memory
write_ids(path, encoder.arrays(pieces))
ids = map_ids(path, encoder.dtype)
"""

import copy
import hashlib
import itertools
import json
import os
import re
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase


_PIECE_CHARACTERS = 1 << 16  # length of the texts that a tokenizer without a look-up table is called with
_CODE_POINTS = 0x110000
_MISSING = np.uint32(0xFFFFFFFF)
ENCODING = 2  # part of the name of stored ids; raised when a text gets other ids than before


def encode_corpus(
    texts: str | Iterable[str], tokenizer: PreTrainedTokenizerBase, cache_dir: str | os.PathLike | None = None
) -> np.ndarray:
    """Encode `texts`, joined, into one flat array of token ids: uint16, or uint32 if there are more than 65,536 tokens.

    No special tokens are added. The ids equal `tokenizer("".join(texts), add_special_tokens=False)` for every tokenizer
    that encodes a text cut before white space like the whole (those of this package and GPT-2's do).

    Args:
        texts: The text, or pieces of it. With `cache_dir` they are read twice, so not a generator.
        tokenizer: Any tokenizer of transformers. Character tokenizers are encoded with a look-up table.
        cache_dir: Folder in which the ids are stored under a hash of text and tokenizer. They are reused, and returned
            as a memory-mapped array.

    Raises:
        ValueError: A character has no id, and the tokenizer has no unknown token.
        TypeError: `texts` is an iterator, and `cache_dir` is given.
    """
    pieces = [texts] if isinstance(texts, str) else texts
    encoder = Encoder(tokenizer)
    if cache_dir is None:
        arrays = list(encoder.arrays(pieces))
        return np.concatenate(arrays) if arrays else np.empty(0, encoder.dtype)
    if iter(pieces) is pieces:
        raise TypeError("with a cache_dir the texts are read twice: pass a list, not an iterator")
    path = Path(cache_dir) / f"{_fingerprint(pieces, tokenizer)}.{encoder.dtype.name}"
    if not path.exists():
        write_ids(path, encoder.arrays(pieces))
    return map_ids(path, encoder.dtype)


class Encoder:
    """Encodes text that comes in pieces, and counts what the tokenizer has no token for.

    Args:
        tokenizer: Any tokenizer of transformers.

    Attributes:
        dtype: Of the ids: uint16, or uint32 if there are more than 65,536 tokens.
        unknown: Characters (for a word tokenizer, words) that became the unknown token so far, with their counts.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        self.dtype = np.dtype(np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32)
        self.unknown: Counter[str] = Counter()
        self._table = _CharacterTable.of(tokenizer)

    def arrays(self, pieces: Iterable[str]) -> Iterator[np.ndarray]:
        """The ids of the joined `pieces`, as consecutive arrays.

        Raises:
            ValueError: A character has no id, and the tokenizer has no unknown token.
        """
        for ids in self._arrays(pieces):
            yield ids.astype(self.dtype, copy=False)

    def _arrays(self, pieces: Iterable[str]) -> Iterator[np.ndarray]:
        if self._table is not None:
            for piece in self._table.whole_pieces(pieces):
                yield from self._table.encode(piece, self.unknown)
            return
        for batch in _cut_before_white_space(pieces, self.tokenizer):
            encoded = self.tokenizer(batch, add_special_tokens=False, return_attention_mask=False, verbose=False)
            for text, ids in zip(batch, encoded["input_ids"], strict=True):
                self.count_unknown(text, ids)
                yield np.array(ids, dtype=np.uint32)

    def count_unknown(self, text: str, ids: list[int]) -> None:
        """Add what became the unknown token in `ids`, the encoding of `text`, to `unknown`."""
        if self.tokenizer.unk_token_id not in ids:
            return
        if self._table is not None:
            self.unknown.update(self._table.missing(text))
        else:
            self.unknown.update(_unknown_parts(text, self.tokenizer))


def write_ids(path: Path, arrays: Iterable[np.ndarray]) -> None:
    """Write consecutive arrays of ids to `path`, creating its folder; an error or interruption leaves no file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    try:
        with open(partial, "wb") as file:
            for array in arrays:
                array.tofile(file)
            file.flush()
            os.fsync(file.fileno())  # else a loss of power may leave an empty file of this name
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def map_ids(path: Path, dtype: np.dtype) -> np.ndarray:
    """The ids in a file of `write_ids`, memory-mapped; `(tokens,)`."""
    if path.stat().st_size == 0:
        return np.empty(0, dtype)
    return np.memmap(path, dtype=dtype, mode="r")


def unknown_characters(texts: str | Iterable[str], tokenizer: PreTrainedTokenizerBase) -> Counter[str]:
    """Count what the tokenizer has no token for in `texts`: characters, or words for a word tokenizer."""
    unknown: Counter[str] = Counter()
    pieces = [texts] if isinstance(texts, str) else texts
    table = _CharacterTable.of(tokenizer)
    if table is not None:
        for piece in table.whole_pieces(pieces):
            unknown.update(table.missing(piece))
    elif tokenizer.unk_token_id is not None:
        for piece in itertools.chain.from_iterable(_cut_before_white_space(pieces, tokenizer)):
            unknown.update(_unknown_parts(piece, tokenizer))
    return unknown


def is_character_tokenizer(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether each token is one character, and other characters cannot be represented (there are no byte tokens)."""
    vocabulary = _character_vocabulary(tokenizer)
    return vocabulary is not None and all(len(token) == 1 for token in vocabulary)


def describe_characters(characters: Iterable[str], most: int = 8) -> str:
    """Characters in a form that can be told apart in print: `'é' (U+00E9), '\\u200b' (U+200B)`."""
    characters = list(characters)
    named = [f"{c!r} (U+{ord(c):04X})" if len(c) == 1 else repr(c) for c in characters[:most]]
    more = f" and {len(characters) - most} more" if len(characters) > most else ""
    return ", ".join(named) + more


def _unknown_parts(text: str, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    for token_id, (start, stop) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        if token_id == tokenizer.unk_token_id and text[start:stop] != tokenizer.unk_token:
            yield text[start:stop]


class _CharacterTable:
    """Code point to id, for tokenizers whose tokens are single characters (and bytes, as a fallback)."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocabulary: dict[str, int], byte_fallback: bool):
        self.tokenizer = tokenizer
        self.byte_fallback = byte_fallback
        self.ids = np.full(_CODE_POINTS, _MISSING, dtype=np.uint32)
        for character, token_id in vocabulary.items():
            self.ids[ord(character)] = token_id
        # bytes.translate encodes text in Latin-1 several times faster than the array.
        small = {ord(c): i for c, i in vocabulary.items() if ord(c) < 256 and i < 256}
        self.small_known = bytes(small)
        self.small_ids = bytes(small.get(code, 0) for code in range(256))
        added = sorted(tokenizer.get_added_vocab(), key=len, reverse=True)
        self.added = re.compile(f"({'|'.join(map(re.escape, added))})") if added else None
        self.longest_added = max(map(len, added), default=1)

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> "_CharacterTable | None":
        """The table of a tokenizer; None if its tokens are not single characters, or depend on what is beside them."""
        vocabulary = _character_vocabulary(tokenizer)
        added = tokenizer.added_tokens_decoder.values()
        if vocabulary is None or any(token.lstrip or token.rstrip or token.single_word for token in added):
            return None
        characters = {token: i for token, i in vocabulary.items() if len(token) == 1}
        return cls(tokenizer, characters, byte_fallback=len(characters) < len(vocabulary))

    def encode(self, text: str, unknown: Counter[str]) -> Iterator[np.ndarray]:
        """The ids of `text`, which may contain special tokens; what becomes the unknown token is added to `unknown`."""
        for index, part in enumerate(self.added.split(text) if self.added else [text]):
            if index % 2:
                yield np.array([self.tokenizer.convert_tokens_to_ids(part)])
            elif part:
                yield self._encode_plain(part, unknown)

    def _encode_plain(self, text: str, unknown: Counter[str]) -> np.ndarray:
        try:
            raw = text.encode("latin-1")
            if not raw.translate(None, self.small_known):  # all characters are known
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
        unknown.update(self.missing(text))
        return np.where(missing, np.uint32(self.tokenizer.unk_token_id), ids)

    def missing(self, text: str) -> Counter[str]:
        """Count the characters of `text` without an id; those of special tokens are not counted."""
        parts = self.added.split(text)[::2] if self.added else [text]
        codes = np.frombuffer("".join(parts).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        codes, counts = np.unique(codes[self.ids[codes] == _MISSING], return_counts=True)
        return Counter({chr(code): int(count) for code, count in zip(codes, counts, strict=True)})

    def whole_pieces(self, pieces: Iterable[str]) -> Iterator[str]:
        """The same text in other pieces: none ends inside a special token that the text contains."""
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


def _character_vocabulary(tokenizer: PreTrainedTokenizerBase) -> dict[str, int] | None:
    """Character (or byte token, as a fallback) to id, without the added tokens; None if there are other tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or backend.normalizer is not None or backend.pre_tokenizer is not None:
        return None
    model = json.loads(backend.to_str())["model"]
    if model["type"] != "BPE" or model["merges"] or model["fuse_unk"]:
        return None
    added = tokenizer.get_added_vocab()
    vocabulary = {token: i for token, i in model["vocab"].items() if token not in added}
    is_known = all(len(token) == 1 or re.fullmatch(r"<0x[0-9A-F]{2}>", token) for token in vocabulary)
    return vocabulary if is_known else None


def _cut_before_white_space(pieces: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[list[str]]:
    """The same text in batches of short texts, in which the tokenizer finds the same words as in the whole."""
    # What white space belongs to: added tokens that strip it, and the beginnings of those that contain it.
    added = tokenizer.added_tokens_decoder.values()
    glue = tuple(token.content for token in added if token.rstrip)
    contents = [token.content for token in added]
    # Before an end-of-text token a text can be cut as well: documents of one word each have no white space.
    end = next((t.content for t in added if t.content == tokenizer.eos_token and not (t.lstrip or t.single_word)), "")
    glue += tuple(content[:i] for content in contents for i in range(1, len(content)) if content[i].isspace())
    text = ""
    for piece in pieces:
        text += piece
        batch, start = [], 0
        while len(text) - start > _PIECE_CHARACTERS:
            cut = _last_word_end(text, start, start + _PIECE_CHARACTERS, glue)
            if cut == start and end:
                cut = max(start, text.rfind(end, start + 1, start + _PIECE_CHARACTERS))
            if cut == start:
                cut = _last_word_end(text, start, len(text), glue)  # one very long word, or white space
            if cut == start:
                break
            batch.append(text[start:cut])
            start = cut
        text = text[start:]
        if batch:
            yield batch
    if text:
        yield [text]


def _last_word_end(text: str, start: int, stop: int, glue: tuple[str, ...]) -> int:
    for cut in range(stop - 1, start, -1):
        if text[cut] in " \t\r\n" and not text[cut - 1].isspace() and not text.endswith(glue, start, cut):
            return cut
    return start


def tokenizer_state(tokenizer: PreTrainedTokenizerBase) -> str:
    """What a fast tokenizer computes, as JSON, without the padding and truncation that its last call left behind."""
    if not tokenizer.is_fast:
        raise ValueError(f"{type(tokenizer).__name__} has no tokenizer.json, which is needed to encode a text")
    backend = copy.deepcopy(tokenizer.backend_tokenizer)  # type: ignore[attr-defined]
    backend.no_padding()
    backend.no_truncation()
    return backend.to_str()


def _fingerprint(pieces: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> str:
    digest = hashlib.blake2b(f"{ENCODING}{tokenizer_state(tokenizer)}".encode(), digest_size=16)
    for piece in pieces:
        digest.update(piece.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
