"""The three tokenizers, and text to packed ids: `tokenization/builders.py` and `tokenization/corpus.py`."""

import json
import os
import random
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from helpers import run_python
from tokenizers import AddedToken, Tokenizer, models
from tokenizers.processors import TemplateProcessing
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from tokenization import (
    add_characters,
    build_bpe_tokenizer,
    build_char_tokenizer,
    build_word_tokenizer,
    corpus,
    describe_characters,
    encode_corpus,
    tokenizer_state,
    unknown_characters,
)


SPECIAL_TOKENS = ["<|endoftext|>", "<|pad|>", "<|unk|>"]
BUILDERS = [build_char_tokenizer, build_bpe_tokenizer, build_word_tokenizer]
PLAY = "To be, or not to be:  that's\n\n\tthe question\r\nWhether 'tis nobler   in the mind\n\n"
AWKWARD_TEXTS = {
    "spaces": "  a  b   c ",
    "newlines": "\n\nline\n \n\tend\n",
    "crlf": "one\r\ntwo\r\r\n",
    "combining": "e\u0301 a\u0308\u0323 \u0301x",
    "emoji": "\U0001f469\u200d\U0001f469\u200d\U0001f467 ok 🎉🎉",
    "special tokens": "a<|endoftext|>b<|pad|> <|unk|>\n<|pad|",
    "punctuation": "don't , !?  ...isn 't",
}

awkward = pytest.mark.parametrize("text", AWKWARD_TEXTS.values(), ids=AWKWARD_TEXTS)
every_builder = pytest.mark.parametrize("build", BUILDERS)

# Tokenizers that do not know all of HARD_TEXT, with ids below and above 256 and code points in and past Latin-1.
HARD_TEXT = PLAY + "<|endoftext|>café Ω<|pad|><|unk|> 🎉ézz " + "o" * 50 + " " * 30 + PLAY + "<|pa"
FOUR_KINDS = {
    "char": build_char_tokenizer(PLAY + "Ω" + "".join(map(chr, range(0x4E00, 0x4F00)))),
    "byte fallback": build_char_tokenizer(PLAY + "<Ω", byte_fallback=True),
    "bpe": build_bpe_tokenizer(PLAY * 3, vocab_size=330),
    "word": build_word_tokenizer(PLAY + "Ω"),
}
every_kind = pytest.mark.parametrize("tokenizer", FOUR_KINDS.values(), ids=FOUR_KINDS)


def cut(text, size):
    return [text[start : start + size] for start in range(0, len(text), size)]


@pytest.mark.parametrize("texts", ["b\nab🎉", ["b", "🎉", "", "\na"]], ids=["whole", "pieces"])
def test_character_ids_are_code_points_in_order_and_then_the_special_tokens(texts):
    tokenizer = build_char_tokenizer(texts)
    ids = {"\n": 0, "a": 1, "b": 2, "🎉": 3, "<|endoftext|>": 4, "<|pad|>": 5, "<|unk|>": 6}
    assert tokenizer.get_vocab() == ids
    assert len(tokenizer) == 7
    assert tokenizer("ba\n🎉").input_ids == [2, 1, 0, 3]


def test_tiny_shakespeare_has_65_characters_and_newline_is_0():
    folder = os.environ.get("GPTLITE_DATA")
    if not folder:
        pytest.skip("GPTLITE_DATA names no folder with tinyshakespeare.txt")
    text = (Path(folder) / "tinyshakespeare.txt").read_bytes().decode()
    tokenizer = build_char_tokenizer(text)
    assert (len(tokenizer), tokenizer.convert_tokens_to_ids("\n"), tokenizer.bos_token_id) == (68, 0, 65)
    ids = encode_corpus(text, tokenizer)
    assert (len(ids), ids.dtype, int(ids.max())) == (1_115_394, np.uint16, 64)


@every_builder
def test_the_vocabulary_ends_with_the_special_tokens_and_bos_is_eos(build):
    tokenizer = build(PLAY)
    end, pad, unknown = range(len(tokenizer) - 3, len(tokenizer))
    assert tokenizer.convert_ids_to_tokens([end, pad, unknown]) == SPECIAL_TOKENS
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (end, end)
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id) == (pad, unknown)


@every_builder
@awkward
def test_decoding_gives_back_what_was_encoded(build, text):
    tokenizer = build(text)
    assert tokenizer.decode(tokenizer(text).input_ids) == text


@awkward
def test_byte_fallback_decodes_back_characters_that_were_never_seen(text):
    tokenizer = build_char_tokenizer("ab", byte_fallback=True)
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    assert (tokenizer.unk_token_id in ids) == ("<|unk|>" in text)


def test_byte_fallback_spells_an_unseen_character_in_utf8_bytes_and_leaves_the_others_alone():
    tokenizer = build_char_tokenizer("ab", byte_fallback=True)
    assert tokenizer.convert_ids_to_tokens(tokenizer("aéb").input_ids) == ["a", "<0xC3>", "<0xA9>", "b"]
    assert len(tokenizer) == 2 + 3 + 256


def test_a_bare_vocabulary_refuses_an_unseen_character():
    tokenizer = build_char_tokenizer("ab", special_tokens=False)
    assert tokenizer.get_vocab() == {"a": 0, "b": 1}
    assert tokenizer("ba").input_ids == [1, 0]
    with pytest.raises(Exception, match="not found in the vocabulary"):
        tokenizer("abz")


@pytest.mark.parametrize("texts", ["", [], iter(["", ""])], ids=["text", "no piece", "empty pieces"])
def test_an_empty_text_makes_no_character_vocabulary(texts):
    with pytest.raises(ValueError, match="empty text"):
        build_char_tokenizer(texts)


@every_kind
def test_nothing_is_added_when_a_text_is_encoded(tokenizer):
    encoded = tokenizer("to be")
    assert set(encoded) == {"input_ids", "attention_mask"}
    assert not set(encoded.input_ids) & set(tokenizer.all_special_ids)
    assert encoded.input_ids == tokenizer("to be", add_special_tokens=False).input_ids
    assert tokenizer("").input_ids == []


@every_kind
def test_a_batch_is_padded_on_the_left(tokenizer):
    long, short = tokenizer(["to be, or not", "to"]).input_ids
    batch = tokenizer(["to be, or not", "to"], padding=True)
    padding = len(long) - len(short)
    assert padding > 0
    assert batch.input_ids == [long, [tokenizer.pad_token_id] * padding + short]
    assert batch.attention_mask == [[1] * len(long), [0] * padding + [1] * len(short)]


def test_a_fresh_process_without_this_package_loads_the_same_tokenizers(tmp_path):
    child = f"""if True:
        import json, sys
        sys.modules["tokenization"] = sys.modules["modeling_gptlite"] = None  # where they are installed, too
        from transformers import AutoTokenizer
        for folder in {list(FOUR_KINDS)!r}:
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            ids = tokenizer({HARD_TEXT!r}).input_ids
            print(json.dumps([ids, tokenizer.decode(ids), tokenizer.padding_side, tokenizer.special_tokens_map]))
    """
    expected = []
    for kind, tokenizer in FOUR_KINDS.items():
        tokenizer.save_pretrained(tmp_path / kind)
        ids = tokenizer(HARD_TEXT).input_ids
        expected.append([ids, tokenizer.decode(ids), "left", tokenizer.special_tokens_map])
    assert [json.loads(line) for line in run_python(child, tmp_path).splitlines()] == expected


@pytest.mark.parametrize("vocab_size", [259, 260, 280])
def test_bpe_fills_the_vocabulary_that_it_was_allowed(vocab_size):
    tokenizer = build_bpe_tokenizer(PLAY * 3, vocab_size)
    assert len(tokenizer) == vocab_size
    assert max(tokenizer.get_vocab().values()) == vocab_size - 1


def test_bpe_of_text_without_spaces_learns_from_words_of_bounded_length_and_stays_lossless():
    text = "".join(random.Random(0).choices("ACGT", k=200_000))
    tokenizer = build_bpe_tokenizer(text, vocab_size=300)  # took minutes
    assert len(tokenizer) == 300
    ids = tokenizer(text + "é\n")["input_ids"]
    assert tokenizer.decode(ids) == text + "é\n"
    assert max(len(tokenizer.decode([i])) for i in ids[:1000]) > 2
    assert "FixedLength" not in tokenizer_state(tokenizer)


@pytest.mark.parametrize("build", [build_bpe_tokenizer, build_word_tokenizer])
def test_documents_without_white_space_are_packed_in_bounded_pieces(build, monkeypatch):
    monkeypatch.setattr(corpus, "_PIECE_CHARACTERS", 50)
    tokenizer = build(PLAY, vocab_size=330)
    pieces = [piece for number in range(100) for piece in (f"First{number}", "<|endoftext|>")]
    batches = list(corpus._cut_before_white_space(pieces, tokenizer))
    assert max(len(text) for batch in batches for text in batch) <= 50
    assert encode_corpus(pieces, tokenizer).tolist() == tokenizer("".join(pieces))["input_ids"]


def test_bpe_stops_where_there_is_nothing_left_to_merge():
    assert len(build_bpe_tokenizer("ab", vocab_size=1000)) < 1000


@pytest.mark.parametrize(
    ("build", "vocab_size", "needed"), [(build_bpe_tokenizer, 258, 259), (build_word_tokenizer, 3, 3)]
)
def test_a_vocabulary_too_small_is_refused_with_both_numbers(build, vocab_size, needed):
    with pytest.raises(ValueError, match=rf"{needed}\b.*\b{vocab_size}$"):
        build(PLAY, vocab_size)


def test_the_word_tokenizer_keeps_the_most_frequent_words_and_the_rest_become_unk():
    tokenizer = build_word_tokenizer("to be or to be to rare", vocab_size=3 + 3)
    assert set(tokenizer.get_vocab()) == {" ", "to", "be", *SPECIAL_TOKENS}
    assert tokenizer.decode(tokenizer("be rare or to").input_ids) == "be <|unk|> <|unk|> to"


def test_the_word_tokenizer_knows_runs_of_white_space_that_it_has_never_seen():
    tokenizer = build_word_tokenizer("to be\nor\tnot")
    text = "\n\n\tto   be\t \n not\n"
    assert tokenizer.decode(tokenizer(text).input_ids) == text


@every_kind
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_packed_ids_are_those_of_the_tokenizer_wherever_the_text_is_cut(tokenizer, size, monkeypatch):
    monkeypatch.setattr("tokenization.corpus._PIECE_CHARACTERS", 20)
    ids = encode_corpus((piece for piece in cut(HARD_TEXT, size)), tokenizer)
    assert ids.dtype == np.uint16
    assert ids.tolist() == tokenizer(HARD_TEXT, add_special_tokens=False).input_ids


@every_kind
@pytest.mark.parametrize("position", range(1, len("<|endoftext|>")))
def test_a_special_token_cut_in_two_stays_one_token(tokenizer, position):
    text, position = "to be<|endoftext|>to be", position + len("to be")
    ids = encode_corpus([text[:position], text[position:]], tokenizer)
    assert ids.tolist().count(tokenizer.eos_token_id) == 1
    assert tokenizer.decode(ids) == text


FLAGS = {
    "lstrip": {"lstrip": True},
    "rstrip": {"rstrip": True},
    "single_word": {"single_word": True},
    "special": {"lstrip": True, "rstrip": True, "special": True},
    "white space inside": {"content": "<my tag>"},
    "none": {},
}


@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
@pytest.mark.parametrize("build", [*BUILDERS, partial(build_char_tokenizer, byte_fallback=True)])
@pytest.mark.parametrize("size", [1, 5, 1000])
def test_all_flags_of_an_added_token_are_packed_right(flags, build, size, monkeypatch):
    monkeypatch.setattr("tokenization.corpus._PIECE_CHARACTERS", 5)
    token = AddedToken(**{"content": "<tag>", **flags})
    text = "to be  <tag>  or<tag>not <tag>\n\nto<my tag> be <my\ttag>" * 2 + "  <tag>"
    tokenizer = build(text)
    tokenizer.add_tokens([token])
    expected = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.convert_tokens_to_ids(token.content) in expected
    assert encode_corpus(cut(text, size), tokenizer).tolist() == expected


@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
def test_characters_join_a_vocabulary_with_such_tokens(flags):
    tokenizer = build_char_tokenizer("to be<mytag>")
    tokenizer.add_tokens([AddedToken(**{"content": "<tag>", **flags})])
    assert add_characters(tokenizer, "to <tag>éz") == ["z", "é"]


def test_unknown_characters_that_become_one_token_together_are_packed_right():
    tokenizer = build_char_tokenizer("ab")
    tokenizer.backend_tokenizer.model.fuse_unk = True
    assert encode_corpus("axyb", tokenizer).tolist() == tokenizer("axyb").input_ids == [0, tokenizer.unk_token_id, 1]


def test_a_character_vocabulary_in_any_order_is_packed_right():
    characters = [*map(chr, range(0x4E00, 0x4F00)), "b", "a"]
    model = models.BPE({c: index for index, c in enumerate(["<unk>", *characters])}, merges=[], unk_token="<unk>")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), unk_token="<unk>")
    assert encode_corpus(["ab", "a\u4e00z", "b<unk>"], tokenizer).tolist() == [258, 257, 258, 1, 0, 257, 0]


@every_builder
def test_no_special_token_is_packed_even_where_the_tokenizer_adds_one(build):
    tokenizer = build(PLAY)
    template = {"single": "<|endoftext|> $A", "special_tokens": [("<|endoftext|>", tokenizer.bos_token_id)]}
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(**template)
    assert tokenizer("to be").input_ids[0] == tokenizer.bos_token_id
    assert encode_corpus("to be", tokenizer).tolist() == tokenizer("to be", add_special_tokens=False).input_ids


@every_kind
@pytest.mark.parametrize("texts", ["", [], [""]], ids=["text", "no piece", "empty piece"])
def test_an_empty_text_has_no_ids(tokenizer, texts, tmp_path):
    for ids in (encode_corpus(texts, tokenizer), encode_corpus(texts, tokenizer, tmp_path)):
        assert (ids.shape, ids.dtype) == ((0,), np.uint16)


@pytest.mark.parametrize(("vocab_size", "dtype"), [(1 << 16, np.uint16), ((1 << 16) + 1, np.uint32)])
def test_ids_take_two_bytes_up_to_65536_tokens_and_four_beyond(vocab_size, dtype, tmp_path):
    characters = "".join(map(chr, range(0x20000, 0x20000 + vocab_size - len(SPECIAL_TOKENS))))
    tokenizer = build_char_tokenizer(characters)
    text = characters[-1] + characters[0] + "<|unk|>"
    for ids in (encode_corpus(text, tokenizer), encode_corpus(text, tokenizer, tmp_path)):
        assert ids.dtype == dtype
        assert ids.tolist() == [vocab_size - 4, 0, vocab_size - 1]


def test_a_tokenizer_without_a_state_is_refused():
    with pytest.raises(ValueError, match=r"ByT5Tokenizer has no tokenizer.json"):
        tokenizer_state(ByT5Tokenizer())


@every_kind
def test_cached_ids_do_not_depend_on_how_the_tokenizer_was_called_last(tokenizer, tmp_path):
    encode_corpus(HARD_TEXT, tokenizer, tmp_path / "cache")
    tokenizer([HARD_TEXT, HARD_TEXT[:3]], padding=True, truncation=True, max_length=9)
    encode_corpus(HARD_TEXT, tokenizer, tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 1


@every_kind
def test_cached_ids_are_mapped_and_used_again_for_the_same_text(tokenizer, tmp_path):
    ids = encode_corpus(cut(HARD_TEXT, 7), tokenizer, tmp_path / "new" / "folder")
    (file,) = (tmp_path / "new" / "folder").iterdir()
    before = file.stat()
    again = encode_corpus(HARD_TEXT, tokenizer, tmp_path / "new" / "folder")
    assert list(file.parent.iterdir()) == [file]
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert isinstance(again, np.memmap)
    assert ids.tolist() == again.tolist() == tokenizer(HARD_TEXT, add_special_tokens=False).input_ids


@pytest.mark.parametrize(
    ("text", "tokenizer"),
    [("ab ba", build_char_tokenizer("abc")), ("abba", build_char_tokenizer("ab "))],
    ids=["tokenizer", "text"],
)
def test_another_tokenizer_or_text_has_its_own_file(text, tokenizer, tmp_path):
    encode_corpus("ab ba", build_char_tokenizer("ab "), tmp_path)
    ids = encode_corpus(text, tokenizer, tmp_path)
    assert ids.tolist() == tokenizer(text).input_ids
    assert len(list(tmp_path.iterdir())) == 2


def test_an_interrupted_encoding_leaves_no_file(tmp_path):
    class InterruptedWhenReadAgain(list):
        def __iter__(self):
            yield "ab" * 1000
            if self:
                raise KeyboardInterrupt
            self.append("read")

    with pytest.raises(KeyboardInterrupt):
        encode_corpus(InterruptedWhenReadAgain(), build_char_tokenizer("ab"), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("cached", [False, True])
def test_a_character_without_id_is_named_where_there_is_no_unk(cached, tmp_path):
    tokenizer = build_char_tokenizer("ab", special_tokens=False)
    with pytest.raises(ValueError, match=r"'z' \(U\+007A\), 'é' \(U\+00E9\)"):
        encode_corpus(["ab", "bézz"], tokenizer, tmp_path if cached else None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (build_char_tokenizer, {"é": 5, "z": 1}),
        (partial(build_char_tokenizer, special_tokens=False), {"é": 5, "z": 1}),
        (partial(build_char_tokenizer, byte_fallback=True), {"é": 5, "z": 1}),
        (build_word_tokenizer, {"éé": 2, "éz": 1}),
        (build_bpe_tokenizer, {}),
    ],
    ids=["char", "bare", "byte fallback", "word", "bpe"],
)
def test_unknown_characters_are_counted(build, expected):
    unknown = unknown_characters(["éé ab éé ", "éz ab"], build("ab ab"))
    assert isinstance(unknown, Counter)
    assert unknown == expected


@pytest.mark.parametrize("build", [build_char_tokenizer, build_word_tokenizer])
def test_special_tokens_written_out_in_a_text_are_not_unknown(build):
    assert unknown_characters("ab<|unk|>ab<|pad|><|endoftext|>ab", build("ab")) == {}


@pytest.mark.parametrize(
    ("characters", "description"),
    [
        ("", ""),
        ("é\u200b", r"'é' (U+00E9), '\u200b' (U+200B)"),
        (Counter({"🎉": 3, "word": 1}), "'🎉' (U+1F389), 'word'"),
        ("abcdefghij", ", ".join(f"'{c}' (U+00{ord(c):X})" for c in "abcdefgh") + " and 2 more"),
    ],
    ids=["none", "invisible", "words", "many"],
)
def test_characters_are_described_so_that_a_person_can_tell_them_apart(characters, description):
    assert describe_characters(characters) == description


@pytest.mark.parametrize("build", [build_char_tokenizer, build_word_tokenizer])
@pytest.mark.parametrize("size", [1, 7])
def test_unknown_characters_do_not_depend_on_where_the_text_is_cut(build, size):
    text = "to be<|endoftext|>to be é or not<|unk|> to be"
    tokenizer = build("to be")
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    assert unknown_characters(pieces, tokenizer) == unknown_characters(text, tokenizer)


@pytest.mark.parametrize("build", [build_bpe_tokenizer, build_word_tokenizer])
def test_control_characters_that_only_python_calls_white_space_are_packed_right(build, monkeypatch):
    monkeypatch.setattr("tokenization.corpus._PIECE_CHARACTERS", 5)
    text = "a!!\x1c!!!!!b"
    tokenizer = build(text)
    assert encode_corpus(text, tokenizer).tolist() == tokenizer(text).input_ids


def test_pieces_that_can_be_read_only_once_are_refused_with_a_cache(tmp_path):
    tokenizer = build_char_tokenizer("ab")
    with pytest.raises(TypeError, match="read twice"):
        encode_corpus(iter(["ab", "ba"]), tokenizer, tmp_path)
    assert encode_corpus("abba", tokenizer, tmp_path).tolist() == [0, 1, 1, 0]
