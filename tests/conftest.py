"""Shared by all tests: no network, one place for caches, the architectures of the presets at a toy size."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest


os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",  # toy models gain nothing from threads and lose to whatever else the machine does
}

import torch
from helpers import TEXT, train_tiny
from transformers import GPT2Config, GPT2LMHeadModel

from tokenization import build_bpe_tokenizer


signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it, and so would our children
pytest_plugins = ["hub_server"]


@pytest.fixture(autouse=True)
def own_caches(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("GPTLITE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True)
def own_compiled_code():
    """Every model that is compiled counts against one limit of recompilations per process."""
    yield
    torch.compiler.reset()


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def text_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "bottles.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def trained(tmp_path_factory, text_file) -> Path:
    """A folder as `scripts.train` leaves it: 20 steps of a toy model on a toy text."""
    folder = tmp_path_factory.mktemp("runs") / "bottles"
    train_tiny(text_file, folder)
    return folder


@pytest.fixture(scope="session")
def talking(tmp_path_factory, trained) -> Path:
    """The toy model, fine-tuned to answer whatever is green with "bottles!"."""
    folder = tmp_path_factory.mktemp("talking")
    talks = [
        [{"role": "user", "content": f"{n} green"}, {"role": "assistant", "content": "bottles!"}] for n in range(99)
    ]
    (folder / "talks.jsonl").write_text("\n".join(json.dumps({"messages": talk}) for talk in talks))
    train_tiny(folder / "talks.jsonl", folder / "run", f"--model_name_or_path={trained}", "--max_steps=100")
    return folder / "run"


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory):
    """A folder as GPT-2's: its class, with a byte-level BPE tokenizer that has but one special token."""
    folder = tmp_path_factory.mktemp("gpt2")
    tokenizer = build_bpe_tokenizer(TEXT, vocab_size=300)
    tokenizer.pad_token, tokenizer.unk_token = None, "<|endoftext|>"
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=32, n_embd=32, n_layer=2, n_head=2, **ends)
    torch.manual_seed(0)
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


# ---- Browsers ------------------------------------------------------------------------------------------------------

CHROMIUM_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser):
    """Opens an address in a page of its own; in the end there must be no error and no request to another host."""
    pages = []

    def open_page(address, **context):
        page = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **context}).new_page()
        page.set_default_timeout(20_000)
        page.problems, page.requested = [], []
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.on("console", lambda message: message.type == "error" and page.problems.append(message.text))
        page.on("request", lambda request: page.requested.append(request.url))
        pages.append((page, address))
        page.goto(address)
        return page

    yield open_page
    for page, address in pages:
        assert page.problems == []
        assert [url for url in page.requested if not url.startswith((address, "data:", "blob:"))] == []
        page.context.close()
