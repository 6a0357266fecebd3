"""The files that the pages are made of, beside this one."""

from pathlib import Path


def asset(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
