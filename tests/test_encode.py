"""From a source to windows: `data/encode.py`."""

import builtins
import hashlib
import io

import numpy as np
import pytest
from helpers import TEXT, train_tiny, write_rows
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from modeling_gptlite.data import DataError, files
from modeling_gptlite.data.encode import encode, encode_text, joined, make_tokenizer
from modeling_gptlite.data.formats import PROMPT_COMPLETION
from modeling_gptlite.data.sources import Source, SourceArguments, open_source
from scripts import generate
from tokenization import build_bpe_tokenizer, build_char_tokenizer, encode_corpus


MANY_BYTES = "a\r\néΩ\n\r\n🎉e\u0301 \u2028\t漢字\r"  # characters of one to four bytes
ALPHABET = "".join(map(chr, range(32, 127))) + "\n"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache of its own."""
    monkeypatch.setenv("GPTLITE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def documents(*texts, size=3):
    """A source whose documents come in pieces of `size` characters."""
    return Source("test", [[t[i : i + size] for i in range(0, len(t), size)] for t in texts])


# ---- Tokenizers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "size"), [("char", 42), ("bpe", 300), ("word", 30)])
def test_each_kind_of_tokenizer_is_built_in_one_reading(kind, size):
    source = documents(TEXT, size=1000)
    tokenizer = make_tokenizer(source, kind, vocab_size={"char": 0}.get(kind, size))
    assert len(tokenizer) == (len(set(TEXT)) + 3 if kind == "char" else size)
    assert source.scan("|").characters == len(TEXT)


def test_a_vocabulary_that_is_too_small_is_refused():
    with pytest.raises(DataError, match="at least 259"):
        make_tokenizer(documents("text"), "bpe", vocab_size=3)


# ---- The split -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_the_split_is_by_position_wherever_the_text_is_cut(size):
    text = MANY_BYTES * 10
    source = documents(text, size=size)
    tokenizer = make_tokenizer(source)
    splits, cut = encode_text(source, tokenizer), len(text) * 9 // 10
    assert tokenizer.decode(splits.train_ids) == text[:cut]
    assert tokenizer.decode(splits.validation_ids) == text[cut:]
    assert ["".join(splits.training_text) for _ in range(2)] == [text[:cut]] * 2
    assert splits.facts == {
        "name": "test",
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "train_characters": cut,
        "validation_characters": len(text) - cut,
        "train_tokens": cut,
        "validation_tokens": len(text) - cut,
        "validation_targets": len(text) - cut - 1,
        **dict.fromkeys(("hub_dataset", "language", "license")),
    }


@pytest.mark.parametrize("position", range(1, 20))
def test_the_two_splits_are_encoded_apart_wherever_the_cut_is(position):
    text = "to be<|endoftext|>to be"
    tokenizer = build_bpe_tokenizer("to be " * 9, vocab_size=270)
    splits = encode_text(documents(text, size=4), tokenizer, validation_fraction=1 - (position + 0.5) / len(text))
    assert splits.train_ids.tolist() == encode_corpus(text[:position], tokenizer).tolist()
    assert splits.validation_ids.tolist() == encode_corpus(text[position:], tokenizer).tolist()


def test_the_end_of_text_token_stands_between_documents_only():
    source = documents("first", "2", "third one")
    assert "".join(joined(source, "|")) == "first|2|third one"
    tokenizer = make_tokenizer(source)
    splits = encode_text(source, tokenizer, validation_fraction=0.1)
    text = tokenizer.decode([*splits.train_ids, *splits.validation_ids])
    assert text == "first<|endoftext|>2<|endoftext|>third one"


def test_a_validation_split_without_a_character_is_refused():
    source = documents("a text of some letters", *[""] * 40)
    with pytest.raises(DataError, match="the end of test, on which a model would be evaluated, has no characters"):
        encode_text(source, build_char_tokenizer("a text of some letters"))


def test_examples_are_not_text_that_can_be_split():
    source = Source("questions", [{"prompt": "a", "completion": "b"}], PROMPT_COMPLETION)
    with pytest.raises(DataError, match=r"questions contains prompts and completions.*--text_column"):
        encode_text(source, build_char_tokenizer("ab"))


# ---- Packed ids ----------------------------------------------------------------------------------------------------


def test_ids_are_cached_for_the_same_text_tokenizer_and_cut(cache):
    tokenizer = make_tokenizer(documents(TEXT))
    first = encode_text(documents(TEXT), tokenizer)
    before = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    again = encode_text(documents(TEXT, size=100), tokenizer)
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == before
    assert isinstance(again.train_ids, np.memmap)
    assert again.train_ids.tolist() == first.train_ids.tolist()
    for source, other, fraction in [
        (documents(TEXT + "!"), tokenizer, 0.1),
        (documents(TEXT), build_char_tokenizer(TEXT + "é"), 0.1),
        (documents(TEXT), tokenizer, 0.2),
    ]:
        count = len(list(cache.iterdir()))
        encode_text(source, other, fraction)
        assert len(list(cache.iterdir())) == count + 2


def test_an_interrupted_encoding_is_done_again(cache, monkeypatch):
    tokenizer = make_tokenizer(documents(TEXT))
    monkeypatch.setattr("modeling_gptlite.data.encode.written", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        encode_text(documents(TEXT), tokenizer)
    monkeypatch.undo()
    monkeypatch.setenv("GPTLITE_CACHE", str(cache))
    assert tokenizer.decode(encode_text(documents(TEXT), tokenizer).train_ids) == TEXT[: int(len(TEXT) * 0.9)]


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("GPTLITE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(DataError, match="GPTLITE_CACHE"):
        encode_text(documents(TEXT), build_char_tokenizer(TEXT))


def test_characters_that_the_tokenizer_does_not_know_are_reported_from_the_cache_as_well():
    for _ in range(2):
        lines = []
        encode_text(documents("ab" * 49 + "éé"), build_char_tokenizer("ab"), report=lines.append)
        assert lines == ["not in the vocabulary, 2.00% of the tokens: 'é' (U+00E9)"]


def test_a_character_without_a_token_is_an_error_if_there_is_no_unknown_token():
    with pytest.raises(DataError, match=r"'é' \(U\+00E9\)"):
        encode_text(documents("abé" * 9), build_char_tokenizer("ab", special_tokens=False))


# ---- How often text is read ----------------------------------------------------------------------------------------


@pytest.fixture
def bytes_read(monkeypatch):
    """Of all files whose name ends with .txt or .jsonl."""
    count, original = [0], builtins.open

    class Counted(io.RawIOBase):
        def __init__(self, path):
            self.file = original(path, "rb", buffering=0)

        def readable(self):
            return True

        def readinto(self, buffer):
            size = self.file.readinto(buffer)
            count[0] += size
            return size

    def counting(path, mode="r", *args, **kwargs):
        if "w" in mode or not str(path).endswith((".txt", ".jsonl")):
            return original(path, mode, *args, **kwargs)
        raw = Counted(path)
        return raw if mode == "rb" else io.TextIOWrapper(io.BufferedReader(raw), encoding="utf-8")

    monkeypatch.setattr(files, "open", counting, raising=False)
    return count


def a_text(kind, folder):
    """Files of 300 kB of text."""
    folder.mkdir()
    text = TEXT * 16
    if kind == "rows":
        return [write_rows(folder / "rows.jsonl", [{"text": line} for line in text.splitlines()])]
    if kind == "pairs":
        lines = text.splitlines()
        rows = [{"prompt": a, "completion": b} for a, b in zip(lines[::2], lines[1::2], strict=True)]
        return [write_rows(folder / "pairs.jsonl", rows)]
    names = ["text.txt"] if kind == "file" else ["a.txt", "b.txt", "c.txt"]
    for name in names:
        (folder / name).write_text(text if kind == "file" else text[: len(text) // 3])
    return [folder]


@pytest.mark.parametrize("tokenizer", ["char", "word"])
@pytest.mark.parametrize("kind", ["file", "folder", "rows", "pairs"])
def test_a_run_reads_its_text_twice_and_once_if_the_ids_are_cached(kind, tokenizer, tmp_path, bytes_read):
    paths = a_text(kind, tmp_path / "text")
    size = sum(path.stat().st_size for path in (tmp_path / "text").iterdir())
    for most in (2.2, 2.2 if kind == "pairs" else 1.2):
        bytes_read[0] = 0
        source = open_source(SourceArguments(train_file=list(map(str, paths))))
        vocabulary = make_tokenizer(source, tokenizer, vocab_size=40)
        encode(source, vocabulary).cut(64, windows_per_step=4, steps=10)
        assert 0.9 * int(most) * size < bytes_read[0] <= most * size


# ---- Windows -------------------------------------------------------------------------------------------------------


def test_a_text_becomes_the_windows_of_its_splits():
    source = Source("test", [[TEXT]], language="en", license="mit", hub_dataset="ada/texts")
    prepared = encode(source, make_tokenizer(source)).cut(32, windows_per_step=4, steps=10, seed=3)
    assert (prepared.steps, len(prepared.train), prepared.train.tokens_per_sample) == (10, 40, 32)
    assert (prepared.train.seed, prepared.prompt) == (3, "\n")
    assert len(prepared.validation) == -(-prepared.facts["validation_targets"] // 32)
    about = {"context_length": 32, "language": "en", "license": "mit", "hub_dataset": "ada/texts"}
    assert {**about, "windows": "without replacement"}.items() <= prepared.facts.items()


@pytest.mark.parametrize("kind", ["char", "bpe", "word"])
@pytest.mark.parametrize("name", ["names.txt", "names.csv"])
def test_documents_are_separated_by_a_token_that_is_trained_and_ends_texts(name, kind, tmp_path, capsys):
    names = ["Ada", "Grace Hopper", "Alan"] * 20
    (tmp_path / name).write_text("\n".join(["name", *names] if name.endswith("csv") else names))
    given = {"text_column": "name"} if name.endswith("csv") else {"documents": "lines"}
    source = open_source(SourceArguments(train_file=[str(tmp_path / name)], **given))
    tokenizer = make_tokenizer(source, kind, 300)
    text = encode_text(source, tokenizer)
    assert tokenizer.decode([*text.train_ids, *text.validation_ids]) == "<|endoftext|>".join(names)
    data = text.cut(8, windows_per_step=1, steps=1)
    assert (data.facts["documents"], data.prompt) == (60, "")
    validated = tokenizer.decode(text.validation_ids).replace("<|endoftext|>", "")
    assert data.facts["validation_characters"] == len(validated)
    assert any(tokenizer.eos_token_id in batch["labels"] for batch in data.validation)
    assert "documents" not in encode_text(Source("one", [["Ada and Alan"]], has_short_texts=True), tokenizer).facts


def test_a_model_of_lines_ends_its_texts_in_generate_and_pipeline(tmp_path, capsys):
    (tmp_path / "names.txt").write_text("Ada\nAlan\nAva\n" * 100)
    train_tiny(tmp_path / "names.txt", tmp_path / "run", "--documents=lines", "--max_steps=150", "--learning_rate=1e-2")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run")
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    (text,) = pipeline("text-generation", model=model, tokenizer=tokenizer)("Al", do_sample=False)
    assert text["generated_text"] == "Alan"
    capsys.readouterr()
    generate.main([f"--model={tmp_path / 'run'}", "--prompt=Al", "--greedy"])
    assert capsys.readouterr().out == "Alan\n"


def test_examples_become_batches_with_the_first_validation_prompt():
    rows = [{"prompt": f"{n} and 1?", "completion": f" {n + 1}!"} for n in range(30)]
    source, lines = Source("sums", [*rows, {"prompt": "x" * 50, "completion": " é"}], PROMPT_COMPLETION), []
    text = encode(source, build_char_tokenizer(ALPHABET), report=lines.append)
    assert text.samples_per_epoch(20) == 27
    prepared = text.cut(20, windows_per_step=4, steps=7, report=lines.append)
    assert prepared.prompt == "27 and 1?"
    assert (len(prepared.train), len(prepared.validation)) == (7 * 4, 4)
    facts = {"examples": "prompts and completions", "train_examples": 27, "validation_examples": 4}
    assert facts.items() <= prepared.facts.items()
    assert any("'é'" in line for line in lines)
    assert any("1 examples are longer than the context length of 20" in line for line in lines)


def test_the_prompt_of_samples_is_without_the_token_that_begins_a_text():
    tokenizer = build_char_tokenizer(ALPHABET)
    template = {"single": "<|endoftext|> $A", "special_tokens": [("<|endoftext|>", tokenizer.bos_token_id)]}
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(**template)
    source = Source("test", [{"prompt": "why?", "completion": " no"}] * 2, PROMPT_COMPLETION)
    assert encode(source, tokenizer, 0.5).cut(20, windows_per_step=1, steps=1).prompt == "why?"


def test_an_epoch_of_text_is_as_many_windows_as_it_has_contexts():
    source = documents("ab" * 100)
    assert encode(source, make_tokenizer(source)).samples_per_epoch(context=9) == 180 / 9


def test_rows_are_truncated_to_the_context_of_each_cut_and_left_out_if_a_completion_is_longer():
    rows = [{"prompt": "x" * 30, "completion": " yes"}, {"prompt": "x", "completion": "y" * 30}] * 5
    text, lines = encode(Source("test", rows, PROMPT_COMPLETION), build_char_tokenizer(ALPHABET), 0.2), []
    short, long = (text.cut(context, 1, 1, report=lines.append).facts for context in (10, 60))
    assert (short["train_examples"], long["train_examples"]) == (4, 8)
    assert lines == [
        "5 examples are longer than the context length of 10: their beginning is cut off",
        "5 examples are left out: their completion alone is longer than the context length",
    ]
