"""Text without tags: HTML pages, and the chapters of EPUB books.

text = html_text("<h1>One</h1><p>It was <b>cold</b>.</p>")  # "One\n\nIt was cold.\n"
"""

import posixpath
import re
import xml.etree.ElementTree as ElementTree
import zipfile
import zlib
from collections.abc import Iterator
from html.parser import HTMLParser
from os import PathLike
from urllib.parse import unquote

from . import DataError


_LINES = frozenset(["br", "dd", "dt", "figcaption", "hr", "li", "option", "td", "th", "tr"])
_PARAGRAPHS = frozenset(
    [
        *("address", "article", "aside", "blockquote", "body", "caption", "div", "dl", "figure", "footer", "form"),
        *("h1", "h2", "h3", "h4", "h5", "h6", "header", "main", "nav", "ol", "p", "pre", "section", "table", "ul"),
    ]
)
DAMAGED = (zipfile.BadZipFile, ElementTree.ParseError, KeyError, ValueError, RuntimeError, EOFError, zlib.error)
_NOT_TEXT = frozenset(["noscript", "script", "style", "svg", "template", "title"])


def html_text(page: str) -> str:
    """What a browser shows of a page: paragraphs with an empty line between them, without tags, scripts and styles."""
    reader = _Reader()
    reader.feed(page)
    reader.close()
    lines = "".join(reader.parts).split("\n")
    return re.sub(r"\n{3,}", "\n\n", "\n".join(line.rstrip() for line in lines)).strip("\n") + "\n"


class _Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.parts: list[str] = []
        self.hidden = self.verbatim = 0  # depth of elements without text, and of <pre>

    def handle_starttag(self, tag, attrs):
        self.hidden += tag in _NOT_TEXT
        self.verbatim += tag == "pre"
        self._break(tag)

    def handle_startendtag(self, tag, attrs):
        self._break(tag)  # <script/> of XHTML has no end

    def handle_endtag(self, tag):
        self.hidden = max(0, self.hidden - (tag in _NOT_TEXT))
        self.verbatim = max(0, self.verbatim - (tag == "pre"))
        self._break(tag)

    def handle_data(self, data):
        if self.hidden:
            return
        if not self.verbatim:
            data = re.sub(r"[ \t\r\n\f]+", " ", data)
            if not self.parts or self.parts[-1][-1] in " \n":
                data = data.lstrip(" ")
        if data:
            self.parts.append(data)

    def _break(self, tag):
        if tag in _LINES or tag in _PARAGRAPHS:
            self.parts.append("\n\n" if tag in _PARAGRAPHS else "\n")


def epub_pages(path: str | PathLike) -> Iterator[bytes]:
    """The pages of an EPUB book in reading order, without its table of contents, as XHTML.

    Raises:
        DataError: The file is not an EPUB book, or it is encrypted.
    """
    try:
        with zipfile.ZipFile(path) as book:
            (root,) = _elements(book.read("META-INF/container.xml"), "rootfile")[:1]
            package = root.attrib["full-path"]
            content = book.read(package)
            items = {item.attrib["id"]: item.attrib for item in _elements(content, "item")}
            for reference in _elements(content, "itemref"):
                item = items[reference.attrib["idref"]]
                if "nav" not in item.get("properties", "").split():
                    yield book.read(posixpath.join(posixpath.dirname(package), unquote(item["href"])))
    except DAMAGED as error:
        raise DataError(f"{path} is not an EPUB book that can be read: {error}") from error


def _elements(document: bytes, name: str) -> list[ElementTree.Element]:
    return ElementTree.fromstring(document).findall(f".//{{*}}{name}")
