"""The page without a server: its files, and the model in a browser."""

import functools
import http.server
import json
import os
import re
import threading
from pathlib import Path

import pytest
import torch
from helpers import ROOT, tiny_model

from modeling_gptlite.page import website
from modeling_gptlite.page.tracing import load
from modeling_gptlite.page.website import TRANSFORMERS_JS, PageError, build_website
from tokenization import build_char_tokenizer


pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def from_cdn(trained, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("website") / "page"
    build_website(str(trained), folder)
    return folder


@pytest.fixture(scope="module")
def address(browser, trained, tmp_path_factory):
    """The page with local libraries, which `NODE_PATH` names, on a local server."""
    modules = [Path(name) for name in os.environ.get("NODE_PATH", "").split(os.pathsep)]
    node_modules = next((folder for folder in modules if (folder / TRANSFORMERS_JS.package).exists()), None)
    if node_modules is None:
        pytest.skip("needs NODE_PATH with a folder that has @huggingface/transformers")
    folder = tmp_path_factory.mktemp("website") / "page"
    build_website(str(trained), folder, node_modules)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture
def page(visit, address):
    page = visit(address)
    finished(page)
    page.locator("#prompt").fill("12 green")
    page.locator("#length").fill("60")
    return page


def write(page) -> str:
    page.click("#write")
    return finished(page)


def finished(page) -> str:
    page.wait_for_function("document.querySelector('#status').innerText.includes('per second')")
    page.locator("#write").wait_for()
    return page.locator(".text").text_content()


def thoughts(page) -> list[dict]:
    return page.locator(".text i").evaluate_all("all => all.map((token) => JSON.parse(token.dataset.thought))")


def of_page(folder, name):
    """The content of a script element of the page's HTML."""
    return json.loads(re.search(rf"<script [^>]*{name}[^>]*>(.*?)</script>", (folder / "index.html").read_text())[1])


# ---- The files -----------------------------------------------------------------------------------------------------


def test_every_library_has_a_version_and_a_digest(from_cdn):
    imports, wasm = of_page(from_cdn, "importmap"), of_page(from_cdn, "facts")["wasm"]
    digests = {**imports["integrity"], wasm["address"]: wasm["integrity"]}
    assert {*imports["imports"].values(), wasm["address"]} == digests.keys()
    for address, digest in digests.items():
        assert re.fullmatch(r"https://cdn\.jsdelivr\.net/npm/(@[\w-]+/)?[\w-]+@\d[\w.-]+/dist/[\w.-]+", address)
        assert re.fullmatch(r"sha384-[\w+/]{64}", digest)


def test_the_documentation_installs_the_version_of_the_page():
    page = (ROOT / "docs" / "demo.md").read_text(encoding="utf-8")
    assert re.findall(r"transformers@([\d.]+)", page) == [TRANSFORMERS_JS.version]


def test_the_page_refers_to_nothing_else_elsewhere(from_cdn):
    for path in from_cdn.glob("*.*"):
        text = path.read_text(encoding="utf-8")
        assert not re.findall(r"https?://(?!cdn\.jsdelivr\.net/npm/)[\w.]+", text), path


def test_the_model_lies_beside_the_page_in_float32(from_cdn):
    files = {str(path.relative_to(from_cdn / "model")) for path in (from_cdn / "model").rglob("*") if path.is_file()}
    graphs = {name for name in files if name.endswith(".onnx")}
    assert graphs == {"onnx/model.onnx"}
    assert {"config.json", "tokenizer.json", "tokenizer_config.json"} <= files


def test_of_a_large_model_the_int8_graph_is_taken(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(website, "LARGEST_FLOAT", 1000)
    build_website(str(trained), tmp_path / "page")
    assert [path.name for path in (tmp_path / "page" / "model" / "onnx").iterdir()] == ["model_quantized.onnx"]
    assert of_page(tmp_path / "page", "facts")["dtype"] == "q8"


def test_names_and_prompts_do_not_become_html(tmp_path):
    evil = "</script><script>alert(1)</script>"
    model, folder = tiny_model("modern-1m", vocab_size=len(set(evil))), tmp_path / "<script>"
    model.save_pretrained(folder)
    build_char_tokenizer(evil, special_tokens=False).save_pretrained(folder)
    (folder / "run.json").write_text(json.dumps({"prompt": evil}))
    build_website(str(folder), tmp_path / "page")
    html = (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    assert "<script>alert" not in html
    assert "&lt;script&gt;" in html
    assert of_page(tmp_path / "page", "facts")["prompts"] == [evil]


def test_what_cannot_be_built_is_refused_and_leaves_nothing(trained, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").touch()
    with pytest.raises(PageError, match="exists already"):
        build_website(str(trained), tmp_path / "full")
    with pytest.raises(PageError, match="npm install"):
        build_website(str(trained), tmp_path / "page", tmp_path / "node_modules")
    changed = tmp_path / "node_modules" / TRANSFORMERS_JS.package / TRANSFORMERS_JS.path
    changed.parent.mkdir(parents=True)
    changed.write_text("export {}")
    with pytest.raises(PageError, match=re.escape(TRANSFORMERS_JS.version)):
        build_website(str(trained), tmp_path / "page", tmp_path / "node_modules")
    other = tiny_model("modern-1m", norm_type="layernorm")  # neither Qwen3 nor GPT-2
    other.save_pretrained(tmp_path / "other")
    load(str(trained)).tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(PageError, match="neither"):
        build_website(str(tmp_path / "other"), tmp_path / "page")
    assert {path.name for path in tmp_path.iterdir()} == {"full", "node_modules", "other"}


# ---- In the browser ------------------------------------------------------------------------------------------------


def test_the_first_character_appears_within_two_seconds(visit, address):
    """Of three visits, each with an empty cache, the fastest counts."""
    seconds = []
    for _ in range(3):
        page = visit(address)
        page.wait_for_selector(".text i")
        seconds.append(page.evaluate("performance.getEntriesByName('first token')[0].startTime") / 1000)
    assert min(seconds) < 2


def test_the_browser_computes_the_probabilities_of_pytorch_past_the_context_too(page, trained):
    traced, text = load(str(trained)), write(page)
    written = thoughts(page)
    ids = traced.tokenizer(text)["input_ids"]
    start, count = 0, len(ids) - len(written)
    assert len(written) == 60
    for position, thought in enumerate(written, count):
        start = position - 16 if position - start > traced.context else start
        with torch.no_grad():
            probabilities = traced.model(torch.tensor([ids[start:position]])).logits[0, -1].softmax(-1)
        assert thought["p"] == pytest.approx(probabilities[ids[position]].item(), abs=1e-4)
        assert [p for _, p in thought["best"]] == pytest.approx(probabilities.topk(5).values.tolist(), abs=1e-4)
        assert sum(p for _, p in thought["best"]) + thought["rest"] == pytest.approx(1, abs=1e-6)


def test_the_likeliest_text_is_what_the_model_generates(page, trained):
    traced = load(str(trained))
    ids = traced.tokenizer("12 green", return_tensors="pt")["input_ids"]
    page.locator("#top_k").fill("1")
    assert write(page) == traced.tokenizer.decode(traced.model.generate(ids, max_new_tokens=60, do_sample=False)[0])


def test_write_takes_a_new_seed_unless_it_is_kept(page):
    first = write(page)
    second, seed = write(page), page.inner_text("#status code")
    assert first != second
    page.locator("#keep_seed").check()
    assert write(page) == second
    assert page.inner_text("#status code") == page.locator("#seed").input_value() == seed


def test_stop_is_there_while_a_text_is_written_and_keeps_what_there_is(page):
    page.locator("#length").fill("1000")
    page.click("#write")
    page.click("#stop")
    text = finished(page)
    assert not page.locator("#stop").is_visible()
    assert "stopped" in page.inner_text("#status")
    assert page.locator(".text i").count() == int(page.inner_text("#status").split()[0]) < 1000
    page.wait_for_timeout(300)
    assert page.locator(".text").text_content() == text


def test_unseen_characters_are_named_and_nothing_is_written(page):
    page.locator("#prompt").fill("12 ï <b>☃</b>")
    page.click("#write")
    message = page.inner_text("#status .error")
    assert "'ï' (U+00EF), '<' (U+003C)" in message
    assert "(U+2603)" in message
    assert page.locator(".text").count() == 0


def test_text_and_seed_are_copied(page):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    text, copied = write(page), []
    for button in (page.locator("#result .copy"), page.locator("#status .copy")):
        button.click()
        page.wait_for_function("button => button.textContent == 'Copied'", arg=button.element_handle())
        copied.append(page.evaluate("navigator.clipboard.readText()"))
    assert copied == [text, page.locator("#seed").input_value()]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_all_without_scrolling_sideways(visit, address, scheme):
    size = {"width": 390, "height": 844}
    page = visit(address, viewport=size, color_scheme=scheme, has_touch=True, is_mobile=True)
    finished(page)
    assert "Tap" in page.inner_text(".facts >> nth=0")
    page.locator(".text i").nth(15).tap()
    page.locator("#tip").wait_for()
    assert page.locator("#tip > div").count() == 6
    boxes = [page.locator(selector).first.bounding_box() for selector in ("#write", ".text", "#tip", "#settings")]
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= 390 for box in boxes)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(map(int, background.removeprefix("rgb(").removesuffix(")").split(","))) / 3
    assert (brightness > 200) == (scheme == "light")


def test_a_model_of_the_hub_takes_the_place_of_the_one_beside_the_page(browser, address, from_cdn):
    page = browser.new_page()
    prefix = "https://huggingface.co/ada/bottles/resolve/main/"

    def answer(route):
        path = from_cdn / "model" / route.request.url.removeprefix(prefix)
        if path.is_file():
            return route.fulfill(path=path, headers={"Access-Control-Allow-Origin": "*"})
        return route.fulfill(status=404, headers={"Access-Control-Allow-Origin": "*"})

    page.route(prefix + "**", answer)
    page.goto(address + "?model=ada/bottles")
    assert len(finished(page)) > 100
    assert page.title() == page.locator("h1").text_content() == "ada/bottles"
    page.close()


def test_a_model_that_cannot_be_loaded_is_reported(browser, address):
    page = browser.new_page()
    page.route("**/model/config.json", lambda route: route.fulfill(status=404))
    page.goto(address)
    page.wait_for_selector("#status .error")
    assert "cannot be loaded" in page.inner_text("#status")
    page.close()
