"""Files, datasets and built-in texts as sources: `data/sources.py`, and the formats of `data/formats.py`."""

import gzip
import hashlib
import os
import urllib.error

import pytest
from helpers import ROOT, run_python, write_rows

from modeling_gptlite.data import DataError, files
from modeling_gptlite.data.formats import CONVERSATIONAL, LANGUAGE_MODELING, PROMPT_COMPLETION
from modeling_gptlite.data.sources import SOURCES, BuiltIn, Source, SourceArguments, open_source
from tokenization import build_char_tokenizer


TALK = [{"role": "user", "content": "1 and 1?"}, {"role": "assistant", "content": "2"}]


def text_of(source):
    return "".join(source.texts())


def open_files(*paths, **arguments):
    return open_source(SourceArguments(train_file=[str(path) for path in paths], **arguments))


# ---- Reading -------------------------------------------------------------------------------------------------------


class Counted(list):
    """Documents that count how often they are read."""

    readings = 0

    def __iter__(self):
        self.readings += 1
        return super().__iter__()


@pytest.mark.parametrize("separator", ["<|endoftext|>", "|", ""])
def test_a_scan_is_of_the_documents_with_separators_between_them(separator):
    source = Source("test", [["fi", "rst"], ["2"], ["third one"]])
    scan, text = source.scan(separator), separator.join(["first", "2", "third one"])
    assert (scan.documents, scan.characters) == (3, len(text))
    assert scan.sha256 == hashlib.sha256(text.encode()).hexdigest()


def test_a_scan_needs_no_reading_of_its_own_once_the_texts_were_read():
    for documents, separator, readings in ([["one"], ["two"]], "<|endoftext|>", 1), ([["one"]], "|", 1):
        source = Source("test", Counted(documents))
        assert text_of(source) == "".join(map("".join, documents))
        source.scan(separator)
        source.scan(separator)
        assert source.documents.readings == readings


def test_a_scan_with_another_separator_reads_the_documents_again():
    source = Source("test", Counted([["one"], ["two"]]))
    text_of(source)
    assert source.scan("|").characters == len("one|two")
    assert source.documents.readings == 2


def test_an_interrupted_reading_is_not_remembered():
    source = Source("test", Counted([["one"], ["two"]]))
    next(source.texts())
    assert source.scan("|").characters == len("one|two")


# ---- Files ---------------------------------------------------------------------------------------------------------


def test_files_are_documents_and_name_the_source(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(name)
    source = open_files(tmp_path / "b.txt", tmp_path / "a.txt")
    assert (source.name, source.format) == ("b.txt a.txt", LANGUAGE_MODELING)
    assert ["".join(document) for document in source.documents] == ["b", "a"]
    assert (source.language, source.license, source.hub_dataset) == (None, None, None)


def test_many_files_are_counted_not_named(tmp_path):
    for number in range(9):
        (tmp_path / f"{number}.txt").write_text("x")
    assert open_files(tmp_path).name == "9 files"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train_file": ["a.txt"], "dataset": "auto"}, "either --train_file or --dataset, not both"),
        ({"dataset": "auto", "encoding": "cp1252"}, "--encoding and --documents are for the files of --train_file"),
        ({"documents": "lines"}, "--encoding and --documents are for the files of --train_file"),
        ({"train_file": ["a.txt"], "encoding": "cp1253x"}, "--encoding cp1253x is unknown; encodings are cp1252,"),
        (
            {"train_file": ["a.txt"], "streaming": True},
            "--dataset_config and --streaming are for a dataset that --dataset",
        ),
        ({"dataset": "tinyshakespeare", "streaming": True}, "--dataset_config and --streaming are for a dataset"),
        ({"dataset_config": "en"}, "--dataset_config and --streaming are for a dataset"),
        (
            {"dataset": "python-docs", "text_column": "text"},
            "--text_column is for tables and datasets, and this is text",
        ),
        ({"text_column": "text"}, "--text_column is for tables and datasets"),
        ({"validation_fraction": 1.0}, "--validation_fraction must lie between 0 and 1, got 1.0"),
    ],
)
def test_arguments_that_contradict_each_other_are_refused(arguments, message):
    with pytest.raises(DataError, match=message):
        open_source(SourceArguments(**arguments))


def test_tables_and_text_are_not_mixed(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.csv").write_text("text\na\n")
    with pytest.raises(DataError, match=r"tables or files of text, not both: .*b.csv and .*a.txt; name one kind"):
        open_files(tmp_path)


GUTENBERG = (
    "The Project Gutenberg eBook of Moby\n\n*** START OF THE PROJECT GUTENBERG EBOOK MOBY ***\n\n\nCall me Ishmael.\n\n"
    "End of Project Gutenberg's Moby\n\n*** END OF THE PROJECT GUTENBERG EBOOK MOBY ***\nSection 1. General Terms\n"
)


@pytest.mark.parametrize("piece_bytes", [4, 50, 1 << 22])
def test_the_license_of_project_gutenberg_is_left_out_and_that_is_said(piece_bytes, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_PIECE_BYTES", piece_bytes)
    (tmp_path / "moby.txt").write_text(GUTENBERG * 20)
    (tmp_path / "moby.html").write_text("<style>p {}</style>" + f"<p>{GUTENBERG}</p>" * 20)
    said = []
    for name in ("moby.txt", "moby.html"):
        source = open_source(SourceArguments(train_file=[str(tmp_path / name)]), said.append)
        assert text_of(source) == "Call me Ishmael.\n" * 20
    license = "the license of Project Gutenberg is left out of"
    assert said == [f"{license} moby.txt", "tags are left out of moby.html", f"{license} moby.html"]


def test_lines_are_documents(tmp_path):
    (tmp_path / "names.txt").write_bytes(b"Ada\r\n\nGrace Hopper \n  \nAlan\rEdsger")
    source = open_files(tmp_path / "names.txt", documents="lines")
    for _ in range(2):
        assert list(source.documents) == [["Ada"], ["Grace Hopper "], ["Alan"], ["Edsger"]]
    assert source.has_short_texts
    assert not open_files(tmp_path / "names.txt").has_short_texts


# ---- Formats -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rows.jsonl", "ROWS.JSONL"])
@pytest.mark.parametrize(
    ("row", "format", "text"),
    [
        ({"messages": TALK, "text": "x"}, CONVERSATIONAL, "user: 1 and 1?\nassistant: 2"),
        ({"prompt": "a", "completion": "b", "id": 3}, PROMPT_COMPLETION, "ab"),
        ({"text": "a", "prompt": "b"}, LANGUAGE_MODELING, "a"),
    ],
    ids=["conversations", "pairs", "text"],
)
def test_the_columns_of_rows_determine_their_format(row, format, text, name, rows):
    file = write_rows(rows / "train.jsonl", [row] * 3)
    sources = [open_source(SourceArguments(dataset=str(rows))), open_files(file.rename(rows / name))]
    for source in sources:
        assert source.format is format
        assert text_of(source) == 3 * text


CELLS = ["1984", 'He said "no",\nand left', "NA"]


def write_table(path):
    """A table of the column `text`, in the format that the name of `path` says."""
    import pandas

    frame = pandas.DataFrame({"id": [1, 2, 3], "text": CELLS})
    plain = path.with_suffix("") if path.suffix == ".gz" else path
    match plain.suffix:
        case ".csv" | ".tsv":
            frame.to_csv(plain, index=False, sep="\t" if plain.suffix == ".tsv" else ",")
        case ".json":
            frame.to_json(plain, orient="records")
        case ".jsonl":
            frame.to_json(plain, orient="records", lines=True)
        case ".parquet":
            frame.to_parquet(plain)
    if path != plain:
        path.write_bytes(gzip.compress(plain.read_bytes()))


@pytest.mark.parametrize("compressed", ["", ".gz"])
@pytest.mark.parametrize("suffix", list(files.TABLES))
def test_each_row_of_a_table_is_a_document_whose_text_is_what_the_file_holds(suffix, compressed, tmp_path):
    write_table(tmp_path / f"rows{suffix}{compressed}")
    source = open_files(tmp_path / f"rows{suffix}{compressed}")
    for _ in range(2):
        assert list(source.documents) == [[cell] for cell in CELLS]
    assert source.has_short_texts


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".parquet"])
def test_the_columns_of_a_table_determine_its_format(suffix, tmp_path):
    import pandas

    pairs = pandas.DataFrame({"prompt": ["1+1="], "completion": ["2"], "n": [1]})
    talks = pandas.DataFrame({"messages": [TALK]})
    for frame, format, text in (
        (pairs, PROMPT_COMPLETION, "1+1=2"),
        (talks, CONVERSATIONAL, "user: 1 and 1?\nassistant: 2"),
    ):
        path = tmp_path / f"{format.columns[0]}{suffix}"
        if suffix == ".parquet":
            frame.to_parquet(path)
        elif suffix == ".json":
            frame.to_json(path, orient="records")
        elif format is PROMPT_COMPLETION:
            frame.to_csv(path, index=False, sep="\t" if suffix == ".tsv" else ",")
        else:
            continue  # a cell of CSV holds no list
        source = open_files(path)
        assert (source.format, text_of(source)) == (format, text)
        assert not source.has_short_texts


def test_a_column_that_is_named_is_read_as_text(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", [{"prompt": "a", "completion": "b"}] * 3)
    assert text_of(open_files(path, text_column="prompt")) == "aaa"


def test_a_file_of_text_has_no_columns(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(DataError, match="--text_column is for tables and datasets, and this is text; leave it out"):
        open_files(tmp_path / "a.txt", text_column="text")


BAD_MESSAGES = {
    "null": ([*TALK, {"role": "user", "content": None}], "the content of message 3 is null"),
    "an image": ([{"role": "user", "content": [{"type": "image"}]}, *TALK], "message 1 has a part of type 'image'"),
    "a list in a list": ([{"role": "user", "content": ["a"]}, *TALK], "message 1 has a part of type 'str'"),
    "no role": ([{"content": "a"}], "there is no 'role'"),
    "text": (["a"], "message 1 must be an object"),
    "not a list": ("a", "messages must be a list"),
    "no reply": (TALK[:1], "role 'assistant'"),
}


@pytest.mark.parametrize(("messages", "told"), BAD_MESSAGES.values(), ids=BAD_MESSAGES)
def test_a_wrong_message_is_refused_with_the_number_of_its_row(messages, told, tmp_path):
    path = write_rows(tmp_path / "talks.jsonl", [{"messages": TALK}, {"messages": messages}])
    with pytest.raises(DataError, match=rf"talks.jsonl, row 2: .*{told}"):
        text_of(open_files(path))


def test_a_template_that_rewrites_earlier_turns_is_refused_with_advice():
    template = "{{ messages | length }}{{ messages[-1]['content'] }}"
    source = Source("test", [{"messages": TALK * 2}], CONVERSATIONAL, chat_template=template)
    with pytest.raises(DataError, match=r"row 1.*each reply into its own row"):
        text_of(source)


def test_a_tokenizer_lends_its_template_or_receives_one():
    own, bare = build_char_tokenizer("abc"), build_char_tokenizer("abc")
    own.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    for tokenizer, text in ((own, "<user>1 and 1?<assistant>2"), (bare, "user: 1 and 1?\nassistant: 2")):
        source = Source("test", [{"messages": TALK}], CONVERSATIONAL)
        source.share_template(tokenizer)
        assert tokenizer.apply_chat_template(TALK, tokenize=False).removesuffix("<|endoftext|>") == text
        if tokenizer is bare:
            assert text_of(source) == text


# ---- Built-in texts ------------------------------------------------------------------------------------------------


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """Neither a network nor a copy of tiny Shakespeare."""

    def refuse(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setenv("GPTLITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("GPTLITE_DATA", raising=False)


def test_tiny_shakespeare_is_the_real_one():
    if not os.environ.get("GPTLITE_DATA"):
        pytest.skip("GPTLITE_DATA names no folder with tinyshakespeare.txt")
    source = open_source(SourceArguments(dataset="tinyshakespeare"))
    scan = source.scan("")
    assert scan.sha256 == "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
    assert scan.characters == 1_115_394
    assert (source.language, source.license) == ("en", "mit")


def test_python_docs_need_no_network(no_network):
    source = open_source(SourceArguments(dataset="python-docs"))
    assert len(text_of(source)) > 100_000
    assert "statement" in text_of(source)
    assert (source.language, source.license, source.hub_dataset) == ("en", "mit", None)


def test_text_needs_no_datasets_library(text_file, tmp_path):
    code = f"""
import sys
sys.modules["datasets"] = None  # as if it were not installed
sys.path.insert(0, {str(ROOT)!r})
from modeling_gptlite.runs.start import start_from

start_from(
    None,
    train_file=[{str(text_file)!r}],
    output_dir="run",
    model_overrides={{"hidden_size": 32, "num_hidden_layers": 1, "max_position_embeddings": 32}},
    max_steps=1,
    per_device_train_batch_size=2,
    sample_length=0,
).train()
"""
    assert "saved in run" in run_python(code, tmp_path)


def test_a_misspelt_name_is_refused_with_those_that_are_built_in(rows):
    with pytest.raises(DataError, match=r"'shakespear'.*auto, tinyshakespeare, python-docs"):
        open_source(SourceArguments(dataset="shakespear"))


def test_without_a_network_tiny_shakespeare_says_what_to_do(no_network):
    with pytest.raises(DataError, match=r"no network.*tinyshakespeare.txt.*GPTLITE_DATA"):
        open_source(SourceArguments(dataset="tinyshakespeare"))


def test_without_a_network_auto_reports_that_it_uses_the_python_docs(no_network):
    messages = []
    assert open_source(SourceArguments(), report=messages.append).name == "python-docs"
    (message,) = messages
    assert "python-docs, NOT on tinyshakespeare" in message
    assert "no network" in message


def test_an_entry_in_the_table_makes_a_text_built_in(monkeypatch):
    monkeypatch.setitem(SOURCES, "zen", BuiltIn(lambda: [["Simple is better than complex.\n"]], "en", "psf-2.0"))
    source = open_source(SourceArguments(dataset="zen"))
    assert text_of(source) == "Simple is better than complex.\n"
    assert (source.name, source.license) == ("zen", "psf-2.0")


# ---- Datasets ------------------------------------------------------------------------------------------------------


@pytest.fixture
def rows(tmp_path, monkeypatch):
    """A folder for a dataset, with the caches of `datasets` beside it."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    (tmp_path / "rows").mkdir()
    return tmp_path / "rows"


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_each_row_of_a_dataset_is_a_document(kind, streaming, rows):
    if kind == "csv":
        (rows / "train.csv").write_text("label,story\n1,one\n2,two\n", encoding="utf-8")
    else:
        write_rows(rows / "train.jsonl", [{"label": 1, "story": "one"}, {"label": 2, "story": "two"}])
    source = open_source(SourceArguments(dataset=str(rows), text_column="story", streaming=streaming))
    for _ in range(2):
        assert list(source.documents) == [["one"], ["two"]]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_missing_column_is_refused_with_those_there_are(streaming, rows):
    (rows / "train.jsonl").write_text('{"label": 1, "story": "one"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"no column 'text'; its columns: label, story$"):
        open_source(SourceArguments(dataset=str(rows), streaming=streaming))


@pytest.mark.parametrize("name", ["someone/no-such-data-set", "./no/such/folder"])
def test_a_dataset_that_cannot_be_loaded_is_named(name, rows):
    with pytest.raises(DataError, match=rf"cannot load the dataset '{name}': \S"):
        open_source(SourceArguments(dataset=name))


def test_a_dataset_on_the_hub_is_recorded(rows, monkeypatch):
    import datasets

    content = datasets.Dataset.from_dict({"text": ["one"]})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: content)
    assert open_source(SourceArguments(dataset="ada/texts")).hub_dataset == "ada/texts"
    assert open_source(SourceArguments(dataset=str(rows))).hub_dataset is None


@pytest.mark.parametrize("name", ["../rows", "../rows/", "absolute"])
def test_a_dataset_in_a_folder_has_the_name_of_the_folder(name, rows, monkeypatch):
    write_rows(rows / "train.jsonl", [{"text": "one"}])
    monkeypatch.chdir(rows)
    assert open_source(SourceArguments(dataset=str(rows) if name == "absolute" else name)).name == "rows"


@pytest.mark.parametrize("kind", ["dataset", "file"])
def test_a_row_without_text_is_refused_with_its_number(kind, rows):
    path = write_rows(rows / "train.jsonl", [{"story": "one"}, {"story": None}])
    where = {"dataset": str(rows), "streaming": True} if kind == "dataset" else {"train_file": [str(path)]}
    with pytest.raises(DataError, match=r"row 2: the column 'story' contains None"):
        text_of(open_source(SourceArguments(**where, text_column="story")))


def test_an_error_in_the_middle_of_a_dataset_names_it(rows, monkeypatch):
    import datasets

    def breaks_off():
        yield {"text": "one"}
        yield {"text": "two"}
        raise ConnectionError("the line went dead")

    content = datasets.IterableDataset.from_generator(breaks_off)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: content)
    with pytest.raises(DataError, match="cannot read the dataset 'ada/texts': "):
        text_of(open_source(SourceArguments(dataset="ada/texts", streaming=True)))
