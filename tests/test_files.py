"""Text, rows, folders and downloads (`data/files.py`); files that are complete or absent (`files.py`)."""

import gzip
import hashlib
import http.client
import io
import json
import os
import stat
import zipfile
from pathlib import Path

import pytest
from helpers import save_model, tiny_model

from modeling_gptlite.data import DataError, files
from modeling_gptlite.data.files import RowFiles, TextFile, download, find_files, read_text
from modeling_gptlite.data.markup import html_text
from modeling_gptlite.errors import UserError
from modeling_gptlite.files import cache_dir, new_folder, sha256, written
from modeling_gptlite.loading import load_pretrained


MANY_BYTES = "a\r\néΩ\n\r\n🎉e\u0301 \u2028\t漢字\r"  # characters of one to four bytes


# ---- Finding -------------------------------------------------------------------------------------------------------


def test_files_come_in_the_order_given_and_a_folder_by_name(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "c.txt" / ".git").mkdir(parents=True)  # a folder that is named like a file
    names = ("z.txt", "folder/b.md", "folder/a.TXT", "folder/c.txt/d.txt.gz", "folder/x.png", "folder/c.txt/y.png")
    for name in (*names, "folder/Makefile", "folder/.hidden.txt", "folder/c.txt/.git/e.txt"):
        (tmp_path / name).write_text(name)
    (tmp_path / "folder" / "0.txt").touch()
    said = []
    found = find_files([tmp_path / "z.txt", str(tmp_path / "folder")], said.append)
    assert [path.name for path in found] == ["z.txt", "a.TXT", "b.md", "d.txt.gz"]
    left_out = "2 .png, 1 empty, 1 without a suffix"
    assert said == [f"{tmp_path / 'folder'}: 3 files are read (1 .md, 2 .txt); left out: {left_out}"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("none.txt", "no such file: .*none.txt"),
        ("empty.txt", "empty.txt is empty"),
        (
            "folder",
            r"no file that can be read in the folder .*folder; read are .txt .md .*.parquet; left out: 1 .docx$",
        ),
    ],
)
def test_files_that_cannot_be_trained_on_are_refused(path, message, tmp_path):
    (tmp_path / "empty.txt").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "text.docx").write_text("text")
    with pytest.raises(DataError, match=message):
        find_files([tmp_path / path])


def test_an_empty_path_is_refused():
    with pytest.raises(DataError, match="the path of a text is empty"):
        find_files([""])


def test_the_current_folder_is_read(here):
    (here / "a.txt").write_text("a")
    assert find_files(["."], list) == [Path("a.txt")]


def test_a_link_to_a_folder_is_counted_among_what_is_left_out(tmp_path):
    for name in ("folder/a.txt", "elsewhere/b.txt"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("text")
    (tmp_path / "folder" / "link").symlink_to(tmp_path / "elsewhere")
    said = []
    assert find_files([tmp_path / "folder"], said.append) == [tmp_path / "folder" / "a.txt"]
    assert said == [f"{tmp_path / 'folder'}: 1 files are read (1 .txt); left out: 1 links to folders"]


@pytest.mark.parametrize("kind", ["named", "process substitution", "device"])
def test_a_pipe_or_device_is_refused_with_advice(kind, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader, writer = os.pipe()
    path = {"named": tmp_path / "pipe", "process substitution": f"/dev/fd/{reader}", "device": "/dev/null"}[kind]
    with pytest.raises(DataError, match=f"{path} is a pipe or a device.*save it to a file"):
        find_files([path])
    os.close(reader)
    os.close(writer)


# ---- Text ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("piece_bytes", [1, 2, 3, 4, 1 << 22])
def test_text_is_read_as_it_stands_wherever_its_bytes_are_cut(piece_bytes, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_PIECE_BYTES", piece_bytes)
    (tmp_path / "text.txt").write_bytes(MANY_BYTES.encode())
    assert "".join(read_text(tmp_path / "text.txt")) == MANY_BYTES


@pytest.mark.parametrize("size", [1, 2, 7, 1 << 20])
def test_lines_are_the_same_wherever_the_text_is_cut(size):
    text = "a long line " * 2000 + "\r\n\r\nb\rc\n\n" + "d" * 5000
    assert list(files.lines(text[start : start + size] for start in range(0, len(text), size))) == text.splitlines()


@pytest.mark.parametrize("piece_bytes", [1, 2, 3, 4, 1 << 22])
@pytest.mark.parametrize(
    "content",
    [
        b"\xe9t\xe9",
        b"ab\xc3\xa9cd\xffef",
        b"\xf0\x9f\x8e\x89\xe2\x82X",
        b"abcd\xf0\x9f\x8eX",
        "Ωé".encode() + b"\xf0\x9f",
    ],
    ids=["Latin-1", "after a character", "cut short", "cut short by one", "end of file"],
)
def test_the_offset_of_the_first_wrong_byte_is_named(content, piece_bytes, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_PIECE_BYTES", piece_bytes)
    (tmp_path / "text.txt").write_bytes(content)
    with pytest.raises(UnicodeDecodeError) as whole:
        content.decode()
    offset = whole.value.start
    with pytest.raises(DataError, match=rf"text.txt is not UTF-8: byte 0x{content[offset]:02x} at offset {offset}; "):
        list(read_text(tmp_path / "text.txt"))


@pytest.mark.parametrize("piece_bytes", [1, 4, 7, 1 << 22])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32", "utf-32-be"])
def test_a_byte_order_mark_says_the_encoding_and_is_not_part_of_the_text(encoding, piece_bytes, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_PIECE_BYTES", piece_bytes)
    mark = "\ufeff" if encoding.endswith("be") else ""
    for name, text in (("a.txt", MANY_BYTES), ("a.csv", "text\né\n"), ("a.jsonl", '{"text": "é"}\n')):
        (tmp_path / name).write_bytes((mark + text).encode(encoding))
        found = RowFiles([tmp_path / name]) if name != "a.txt" else TextFile(tmp_path / name, "cp1252")
        assert list(found) == [{"text": "é"}] if name != "a.txt" else "".join(found) == MANY_BYTES


@pytest.mark.parametrize(("given", "encoding"), [("utf-16", "utf-16"), ("utf-32", "utf-32"), ("utf16", "utf-16")])
def test_an_encoding_that_needs_a_byte_order_mark_is_refused_for_a_text_without_one(given, encoding, tmp_path):
    (tmp_path / "a.txt").write_bytes("text".encode(f"{encoding}-le"))
    with pytest.raises(DataError, match=rf"a.txt: .*; give --encoding {encoding}-le or {encoding}-be$"):
        list(read_text(tmp_path / "a.txt", given))


ENCODED = {
    "cp1252": ("Le café était fermé – dommage. " * 20, "Le café"),
    "cp1251": ("Все счастливые семьи похожи друг на друга. ", "Все счастливые"),
    "koi8_r": ("Все счастливые семьи похожи друг на друга. ", "Все счастливые"),
    "shift_jis": ("吾輩は猫である。名前はまだ無い。", "吾輩は猫"),
    "gb18030": ("天下大势，分久必合，合久必分。", "天下大势"),
    "euc_kr": ("나라의 말이 중국과 달라 문자와 서로 통하지 아니하므로", "나라의"),
}


@pytest.mark.parametrize("encoding", ENCODED)
def test_the_likely_encoding_is_named_with_its_flag_and_reads_the_text(encoding, tmp_path):
    text, shown = ENCODED[encoding]
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    with pytest.raises(DataError, match=rf"reads '{shown}.*there: .*train with --encoding {encoding}$"):
        list(read_text(tmp_path / "a.txt"))
    for piece_bytes in (1, 2, 5, 1 << 22):
        assert "".join(read_text(tmp_path / "a.txt", encoding, piece_bytes)) == text
    with pytest.raises(DataError, match=r"a.txt is not ascii: byte 0x.* give another one with --encoding"):
        list(read_text(tmp_path / "a.txt", "ascii"))


@pytest.mark.parametrize("name", ["a.pdf", "a.docx", "a"])
def test_a_file_that_is_not_text_is_refused_with_what_is_read_and_how_to_convert_it(name, tmp_path):
    (tmp_path / name).write_bytes(b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n\x00\x01\x9c")
    with pytest.raises(DataError, match=rf"{name} is not text.* reads .txt .md .*.parquet, each also .gz.*pdftotext"):
        TextFile.of(tmp_path / name, None)


def test_a_text_with_another_suffix_is_read_as_text(tmp_path):
    (tmp_path / "server.log").write_text("\x1b[1mérror")
    assert list(TextFile.of(tmp_path / "server.log", None)) == ["\x1b[1mérror"]


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.gz", "a.TXT.GZ"])
def test_a_compressed_file_that_is_cut_short_is_refused(name, tmp_path):
    (tmp_path / name).write_bytes(gzip.compress(b'{"text": "one"}' * 1000)[:-20])
    with pytest.raises(DataError, match="is not a complete gzip file"):
        list(read_text(tmp_path / name))


def gutenberg(*texts):
    """A file with books of Project Gutenberg."""
    return "".join(
        f"The Project Gutenberg eBook {number}\n\n*** START OF THE PROJECT GUTENBERG EBOOK {number} ***\n\n{text}\n\n"
        f"*** END OF THE PROJECT GUTENBERG EBOOK {number} ***\n{'General Terms of Use ' * 100}\n"
        for number, text in enumerate(texts)
    )


BOOKS = ["\n".join(f"{number} {color} bottles" for number in range(150)) for color in ("green", "blue", "red")]


@pytest.mark.parametrize("piece_bytes", [4, 50, 999, 1 << 22])
@pytest.mark.parametrize("count", [1, 3])
def test_each_book_of_project_gutenberg_keeps_its_text_and_loses_its_license(count, piece_bytes, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_PIECE_BYTES", piece_bytes)
    (tmp_path / "a.txt").write_text(gutenberg(*BOOKS[:count]))
    assert "".join(TextFile.of(tmp_path / "a.txt", None)) == "".join(f"{text}\n" for text in BOOKS[:count])


@pytest.mark.parametrize("piece_bytes", [4, 1 << 22])
def test_a_book_of_project_gutenberg_whose_end_is_missing_is_kept_and_the_next_one_too(
    piece_bytes, tmp_path, monkeypatch
):
    monkeypatch.setattr(files, "_PIECE_BYTES", piece_bytes)
    (tmp_path / "a.txt").write_text(gutenberg(BOOKS[0]).split("*** END")[0])
    (tmp_path / "b.txt").write_text(gutenberg(BOOKS[0]).split("*** END")[0] + gutenberg(BOOKS[1]))
    one, both = ("".join(TextFile.of(tmp_path / name, None)) for name in ("a.txt", "b.txt"))
    assert one == f"{BOOKS[0]}\n\n"
    assert both.startswith(one)
    assert both.endswith(f"\n{BOOKS[1]}\n")


PAGE = """<!DOCTYPE html><html><head><title>No</title><script>if (1 < 2) {}</script></head>
<body><h1>One &amp; <i>only</i></h1><p>It   was
<b>cold</b>.<br/>Very.</p><script src="x"/></script><ul><li>a<li>b</ul><pre>x  =  1
y</pre></body></html>"""


def test_a_page_is_read_as_its_text(tmp_path):
    (tmp_path / "a.html").write_text(PAGE)
    assert "".join(TextFile(tmp_path / "a.html")) == "One & only\n\nIt was cold.\nVery.\n\na\nb\n\nx  =  1\ny\n"


def test_the_head_of_a_page_may_lack_its_end_and_its_title_is_not_text():
    page = "<html><head><meta charset=utf-8><title>No</title><style>p {}</style><body><p>Yes</p></body></html>"
    assert html_text(page) == "Yes\n"


def write_book(path, **pages):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as book:
        book.writestr(
            "META-INF/container.xml",
            """<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container">
            <rootfiles><rootfile full-path="OEBPS/book.opf"/></rootfiles></container>""",
        )
        items = "".join(f'<item id="{name}" href="{name}%201.xhtml"/>' for name in pages)
        items += '<item id="nav" href="nav.xhtml" properties="nav"/>'
        order = "".join(f'<itemref idref="{name}"/>' for name in ["nav", *reversed(pages)])
        book.writestr(
            "OEBPS/book.opf",
            f"""<package xmlns="http://www.idpf.org/2007/opf">
            <manifest>{items}</manifest><spine>{order}</spine></package>""",
        )
        for name, text in pages.items():
            book.writestr(f"OEBPS/{name} 1.xhtml", f'<?xml version="1.0"?><html><body><p>{text}</p></body></html>')


def test_a_book_is_read_in_the_order_of_its_spine_without_its_table_of_contents(tmp_path):
    write_book(tmp_path / "a.epub", second="Dénouement", first="Once")
    assert "".join(TextFile(tmp_path / "a.epub")) == "Once\n\nDénouement\n"
    (tmp_path / "b.epub").write_text("no")
    with pytest.raises(DataError, match=r"b.epub is not an EPUB book that can be read: File is not a zip file"):
        list(TextFile(tmp_path / "b.epub"))


def test_a_book_with_a_damaged_page_is_named(tmp_path):
    write_book(tmp_path / "a.epub", first="Once upon a time")
    content = (tmp_path / "a.epub").read_bytes()
    begin = content.index(name := b"OEBPS/first 1.xhtml") + len(name)
    (tmp_path / "a.epub").write_bytes(content[:begin] + b"\xff" + content[begin + 1 :])
    with pytest.raises(DataError, match=r"a.epub is not an EPUB book that can be read: .*invalid block type"):
        list(TextFile(tmp_path / "a.epub"))


# ---- Rows ----------------------------------------------------------------------------------------------------------


def test_empty_lines_between_rows_are_skipped(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n\n{"text": "\\ud83c\\udf89"}\n \n')
    (tmp_path / "b.jsonl").write_text('{"text": 3}')
    rows = RowFiles([tmp_path / "a.jsonl", tmp_path / "b.jsonl"])
    for _ in range(2):
        assert list(rows) == [{"text": "one"}, {"text": "🎉"}, {"text": 3}]


@pytest.mark.parametrize(
    ("line", "told"),
    [('{"text": ', "is not JSON"), ("[1]", "not a JSON object")],
    ids=["cut", "list"],
)
def test_a_wrong_line_is_refused_with_file_and_number(line, told, tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": "one"}) + "\n\n" + line + "\n")
    with pytest.raises(DataError, match=rf"rows.jsonl, line 3.*{told}"):
        list(RowFiles([tmp_path / "rows.jsonl"]))


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.csv", "id,text\n1,a\n2,b, c\n", "a.csv, line 3: 3 values, but 2 columns .id, text.; .* must be quoted"),
        ("a.csv", 'text\n"a" b\n', "a.csv, line 2: ',' expected after '\"'"),
        ("a.tsv", 'text\n"a\n', "a.tsv, line 2: unexpected end of data"),
        ("a.json", '["a"]', "a.json, row 1: '\"a\"' is not a JSON object"),
        ("a.json", '[{"text": "a"', "a.json, line 1 is not JSON"),
        ("a.parquet", "text", "a.parquet is not a Parquet file: "),
    ],
)
def test_a_wrong_table_is_refused_with_the_place(name, content, told, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=told):
        list(RowFiles([tmp_path / name]))


DAMAGE = {
    "the header of a page": lambda content: content[:4] + b"\xff" * 20 + content[24:],
    "the lengths of texts": lambda content: content[:9000] + b"\xff" * 20 + content[9020:],
    "a text": lambda content: content.replace(b"500 green", b"500 \xffreen"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_parquet_file_is_named(damage, tmp_path):
    import pandas

    path = tmp_path / "a.parquet"
    pandas.DataFrame({"text": [f"{n} green bottles" for n in range(1000)]}).to_parquet(path, compression=None)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"a.parquet is not a Parquet file: "):
        list(RowFiles([path]))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "id;text\n1;a, b\n"),
        ("a.json", '{"id": "1", "text": "a, b"}\n\n'),
        ("a.json", '[{"id": "1", "text": "a, b"}]'),
    ],
    ids=["semicolons", "JSON Lines", "a list"],
)
def test_other_layouts_of_a_table_are_read(name, content, tmp_path):
    (tmp_path / name).write_text(content)
    assert list(RowFiles([tmp_path / name])) == [{"id": "1", "text": "a, b"}]


# ---- Downloads -----------------------------------------------------------------------------------------------------

TEXT = b"First Citizen:\n"
A_TEXT = ("some_text.txt", "https://example.org/text", hashlib.sha256(TEXT).hexdigest())


@pytest.fixture
def serve(monkeypatch, tmp_path):
    """Sets what the network serves, and an empty cache."""
    monkeypatch.setenv("GPTLITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("GPTLITE_DATA", raising=False)

    def serve(*responses):
        left = list(responses)
        monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: left.pop(0))

    return serve


def test_a_text_is_downloaded_once(serve, tmp_path):
    serve(io.BytesIO(TEXT))
    for _ in range(2):
        (text,) = download(*A_TEXT)
        assert "".join(text).encode() == TEXT
    assert [file.name for file in (tmp_path / "cache").iterdir()] == ["some_text.txt"]


def test_a_text_is_read_from_the_data_folder_first(serve, tmp_path, monkeypatch):
    serve()
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "some_text.txt").write_text("something else")
    (tmp_path / "some_text.txt").write_bytes(TEXT)
    monkeypatch.setenv("GPTLITE_DATA", str(tmp_path))
    assert download(*A_TEXT) == [TextFile(tmp_path / "some_text.txt")]


@pytest.mark.parametrize("variable", ["GPTLITE_DATA", "GPTLITE_CACHE"])
def test_a_tilde_in_a_variable_is_the_home_folder(variable, serve, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv(variable, "~")
    (tmp_path / "some_text.txt").write_bytes(TEXT)
    assert download(*A_TEXT) == [TextFile(tmp_path / "some_text.txt")]


def test_without_a_home_folder_the_error_names_the_variable(monkeypatch, tmp_path):
    monkeypatch.delenv("GPTLITE_CACHE")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # no HOME, and no entry in passwd
    with pytest.raises(UserError, match="set GPTLITE_CACHE"):
        cache_dir()
    monkeypatch.setenv("GPTLITE_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path


@pytest.mark.parametrize("variable", ["GPTLITE_DATA", "GPTLITE_CACHE"])
def test_another_text_in_its_place_is_refused(variable, serve, tmp_path, monkeypatch):
    (tmp_path / "some_text.txt").write_text("To be, or not to be")
    monkeypatch.setenv(variable, str(tmp_path))
    with pytest.raises(DataError, match=r"some_text.txt is not the expected text: its sha256 differs"):
        download(*A_TEXT)


def test_a_download_of_something_else_is_refused_and_not_kept(serve, tmp_path):
    serve(io.BytesIO(b"<html>Sign in to this network"))
    with pytest.raises(DataError, match=r"example.org/text is not the expected text"):
        download(*A_TEXT)
    assert not list(tmp_path.rglob("*.*"))


def test_a_download_that_breaks_off_is_an_error_with_advice(serve):
    class BreaksOff(io.BytesIO):
        def read(self, *_):
            raise http.client.IncompleteRead(b"")

    serve(BreaksOff())
    with pytest.raises(DataError, match=r"example.org.*some_text.txt.*GPTLITE_DATA"):
        download(*A_TEXT)


def test_a_cache_that_cannot_be_written_is_named(serve, tmp_path, monkeypatch):
    serve(io.BytesIO(TEXT))
    (tmp_path / "file").touch()
    monkeypatch.setenv("GPTLITE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(DataError, match="GPTLITE_CACHE"):
        download(*A_TEXT)


# ---- Complete or absent --------------------------------------------------------------------------------------------


def test_a_file_appears_when_it_is_complete_and_a_failure_leaves_the_old_one(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with written(path) as partial:
        partial.write_text("old")
        assert not path.exists()
    with pytest.raises(ZeroDivisionError), written(path) as partial:
        partial.write_text(str(1 / 0))
    assert path.read_text() == "old"
    assert os.listdir(path.parent) == ["a.txt"]


def test_two_writers_of_a_file_do_not_disturb_each_other(tmp_path):
    with written(tmp_path / "a") as one, written(tmp_path / "a") as other:
        one.write_text("one")
        other.write_text("other")
    assert (tmp_path / "a").read_text() == "one"
    assert os.listdir(tmp_path) == ["a"]


def test_a_folder_appears_when_it_is_complete_and_a_failure_leaves_nothing(tmp_path):
    path = tmp_path / "new" / "folder"
    with pytest.raises(ZeroDivisionError), new_folder(path) as folder:
        (folder / "a").write_text(str(1 / 0))
    assert os.listdir(tmp_path) == []
    path.mkdir(parents=True)  # an empty folder is as good as none
    with new_folder(path) as folder:
        (folder / "a").touch()
        assert os.listdir(path) == []
    assert os.listdir(path) == ["a"]
    with pytest.raises(DataError, match="folder exists already; name a new folder"), new_folder(path, DataError):
        pass
    with pytest.raises(DataError, match=r"cannot write .*: Not a directory"), new_folder(path / "a" / "b", DataError):
        pass


def test_the_sha256_of_a_file(tmp_path):
    (tmp_path / "a").write_bytes(TEXT)
    assert sha256(tmp_path / "a") == hashlib.sha256(TEXT).hexdigest()


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_weights_get_their_permissions_from_the_umask(umask, mode, tmp_path):
    before = os.umask(umask)
    try:
        with new_folder(tmp_path / "model") as folder:
            tiny_model("modern-1m").save_pretrained(folder)
    finally:
        os.umask(before)
    weights = tmp_path / "model" / "model.safetensors"
    assert stat.S_IMODE(weights.stat().st_mode) == mode
    assert stat.S_IMODE((tmp_path / "model").stat().st_mode) == 0o777 & ~umask


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_model_that_may_not_be_read_is_named(name, tmp_path, monkeypatch):
    save_model(tmp_path, "modern-1m")
    access = os.access
    monkeypatch.setattr("os.access", lambda path, mode: access(path, mode) and path != tmp_path / name)
    with pytest.raises(UserError, match=f"no permission to read .*{name}"):
        load_pretrained(str(tmp_path))
