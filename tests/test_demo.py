"""The command `scripts.demo`."""

import sys

import pytest
from helpers import refused

from scripts import demo


def test_without_gradio_the_extra_is_named(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "modeling_gptlite.page.app", raising=False)
    monkeypatch.setitem(sys.modules, "gradio", None)
    refused(demo.main, "--model=x", capsys=capsys, told=["gptlite[demo]"])


def test_mistakes_are_reported_in_one_line(capsys):
    refused(demo.main, "--model", "a", "b", "c", capsys=capsys, told=["two to compare", "3"])
    refused(demo.main, "--model=a", "--port=many", capsys=capsys, told=["--port"])
    refused(demo.main, "--modle=a", "--model=b", capsys=capsys, told=["--modle"])
    pytest.importorskip("gradio")
    refused(demo.main, "--model=nowhere/at/all", capsys=capsys, told=["nowhere/at/all"])


def test_the_models_and_the_address_reach_the_page(trained, monkeypatch):
    app = pytest.importorskip("modeling_gptlite.page.app", exc_type=ImportError)
    calls = []
    monkeypatch.setattr(app, "launch", lambda models, **settings: calls.append((models, settings)))
    demo.main(["--model", str(trained / "checkpoint-10"), str(trained), "--port=7999", "--host=0.0.0.0"])
    ((models, settings),) = calls
    assert [model.label for model in models] == ["bottles/checkpoint-10", "bottles"]
    assert settings == {"server_name": "0.0.0.0", "server_port": 7999, "share": False}
