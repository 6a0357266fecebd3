"""The demo page in a real browser: Chromium, driven by Playwright, on a toy model and a checkpoint of its training."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from conftest import ROOT


pytest.importorskip("gradio")
sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
FLAGS = [
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
def address(trained):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    models = [str(trained / "checkpoint-10"), str(trained)]
    server = subprocess.Popen(
        [sys.executable, "-m", "scripts.demo", "--model", *models, f"--port={port}"],
        cwd=ROOT,
        env=os.environ | {"GRADIO_ANALYTICS_ENABLED": "False"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(address, timeout=5)
                break
            except OSError:
                assert server.poll() is None, "the demo has ended"
                time.sleep(0.2)
        yield address
    finally:
        server.kill()
        server.wait()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address):
    page = browser.new_page()
    page.set_default_timeout(60_000)
    page.set_viewport_size({"width": 1280, "height": 900})
    page.emulate_media(color_scheme="light")
    page.problems, page.elsewhere = [], []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("request", lambda request: page.elsewhere.append(request.url))
    page.goto(address)
    page.wait_for_selector("#write")
    ask(page, "12 green")
    setting(page, "Length", 60)
    yield page
    assert page.problems == []
    assert [url for url in page.elsewhere if not url.startswith((address, "data:", "blob:"))] == []
    page.close()


def ask(page, prompt):
    page.locator("#ask textarea").fill(prompt)


def setting(page, name, value):
    field = page.locator("#settings").get_by_label(name, exact=False).and_(page.locator("input[type=number]"))
    field.fill(str(value))
    field.blur()


def write(page, tokens=60) -> list[str]:
    """Click, wait for the end, and read the texts."""
    page.click("#write")
    done(page, tokens)
    return texts(page)


def done(page, tokens):
    page.wait_for_function("n => document.querySelector('#status').innerText.startsWith(`${n} tokens`)", arg=tokens)


def texts(page) -> list[str]:
    return page.locator(".text").all_text_contents()


def tip(page) -> list[tuple[str, float]]:
    """The rows of the open tooltip."""
    rows = page.locator("#tip > div").all()
    return [(row.locator("span").first.text_content(), row.locator("span").last.text_content()) for row in rows]


def test_both_models_continue_the_prompt_as_it_is_written(page):
    setting(page, "Length", 1000)
    page.click("#write")
    page.wait_for_selector(".text i")
    lengths = [[len(text) for text in texts(page)]]
    done(page, 1000)
    lengths.append([len(text) for text in texts(page)])
    assert all(text.startswith("12 green") for text in texts(page))
    assert page.locator("#texts h3").all_text_contents() == ["bottles/checkpoint-10", "bottles"]
    assert len(set(texts(page))) == 2
    assert all(early < late for early, late in zip(*lengths, strict=True))
    assert page.locator(".text").last.locator("i").count() == 1000


def test_stop_ends_the_writing_and_another_goes_on(page):
    setting(page, "Length", 1000)
    page.click("#write")
    page.wait_for_selector(".text i")
    page.click("#stop")
    page.wait_for_function("document.querySelector('#status').innerText.endsWith('stopped')")
    stopped = texts(page)
    written = int(page.inner_text("#status").split()[0])
    assert page.locator(".text").first.locator("i").count() == written < 1000
    page.wait_for_timeout(700)
    assert texts(page) == stopped
    setting(page, "Length", 60)
    page.click("#another")
    done(page, 60)
    assert texts(page) != stopped


def test_a_seed_repeats_the_text_and_temperature_changes_it(page):
    first = write(page)
    ask(page, "7")  # so that the same text is not simply what was there
    write(page)
    ask(page, "12 green")
    assert write(page) == first
    setting(page, "Temperature", 2)
    assert write(page) != first
    setting(page, "Temperature", 0.8)
    setting(page, "Seed", 2)
    assert write(page) != first


def test_another_takes_a_new_seed(page):
    first = write(page)
    page.click("#another")
    page.wait_for_function("text => document.querySelector('.text').textContent != text", arg=first[0])
    done(page, 60)
    assert texts(page) != first


def test_samples_stand_side_by_side(page):
    setting(page, "Samples", 3)
    write(page)
    assert page.locator("#texts h3").all_text_contents()[3:] == [f"bottles, sample {i}" for i in (1, 2, 3)]
    assert len(set(texts(page))) == 6
    setting(page, "Samples", 1)
    assert len(write(page)) == 2


def test_pointing_at_a_character_shows_five_alternatives_and_the_rest(page):
    write(page)
    page.locator(".text i").nth(20).hover()
    rows = tip(page)
    assert [name for name, _ in rows][-1] == "the rest"
    assert len(rows) == 6
    shares = [float(share.removesuffix(" %")) for _, share in rows]
    assert sum(shares) == pytest.approx(100, abs=1e-6)
    assert shares[:5] == sorted(shares[:5], reverse=True)
    page.mouse.move(0, 0)
    assert page.locator("#tip").is_hidden()


def test_the_page_works_without_a_mouse(page):
    page.locator("#ask textarea").focus()
    page.keyboard.press("Shift+Enter")
    done(page, 60)
    page.locator(".text").last.focus()
    told = []
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft"):
        page.keyboard.press(key)
        told.append((page.locator(".text i.on").count(), tip(page)))
    assert told[0] == told[2] != told[1]
    assert told[0][0] == 1
    page.keyboard.press("Escape")
    assert page.locator("#tip").is_hidden()
    page.locator("#write").focus()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "another"


def test_attention_of_any_layer_and_head(page):
    write(page)
    page.get_by_text("What the model looks at").click()
    pictures = page.locator("#attention svg")
    pictures.first.wait_for()
    assert pictures.count() == 2
    assert pictures.first.locator("rect").count() == 24 * 25 // 2
    seen = set()
    for layer, head in ((1, 1), (1, 2), (2, 1)):
        before = page.inner_html("#attention")
        page.locator("#layer label").nth(layer - 1).click()
        page.locator("#head label").nth(head - 1).click()
        if (layer, head) != (1, 1):
            page.wait_for_function("html => document.querySelector('#attention').innerHTML != html", arg=before)
            page.wait_for_timeout(300)
        seen.add(page.inner_html("#attention"))
    assert len(seen) == 3


def test_unseen_characters_are_told_and_nothing_is_written(page):
    ask(page, "12 ï <b>☃</b>")
    page.click("#write")
    page.wait_for_selector("#status .error")
    message = page.inner_text("#status")
    assert "never seen 'ï' (U+00EF), '<' (U+003C)" in message
    assert "(U+2603)" in message
    assert texts(page) == []
    ask(page, "12")
    assert len(write(page)) == 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_all_without_scrolling_sideways(page, scheme):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 390, "height": 844})
    page.reload()
    page.wait_for_selector("#write")
    ask(page, "12 green")
    setting(page, "Length", 60)
    setting(page, "Samples", 2)
    write(page)
    page.get_by_text("What the model looks at").click()
    page.locator("#attention svg").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    boxes = [page.locator(selector).first.bounding_box() for selector in ("#write", "#stop", ".text", "#attention svg")]
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= 390 for box in boxes)
    assert boxes[2]["y"] < 844  # the text is seen without scrolling down
    page.locator(".text i").nth(15).click()
    box = page.locator("#tip").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 390
    background = page.evaluate("getComputedStyle(document.querySelector('.text')).backgroundColor")
    brightness = sum(map(int, background.removeprefix("rgb(").removesuffix(")").split(","))) / 3
    assert (brightness > 200) == (scheme == "light")
