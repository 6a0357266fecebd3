"""The Gradio page in a browser: a toy model and a checkpoint of its training."""

import os
import subprocess
import sys
import time
import urllib.request

import pytest
from helpers import ROOT, free_port


pytest.importorskip("gradio")


@pytest.fixture(scope="module")
def address(browser, trained):
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(
        [sys.executable, "-m", "scripts.demo", "--model", trained / "checkpoint-10", trained, f"--port={port}"],
        cwd=ROOT,
        env=os.environ | {"GRADIO_ANALYTICS_ENABLED": "False"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
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


@pytest.fixture
def page(visit, address):
    page = visit(address)
    page.wait_for_selector("#write")
    ask(page, "12 green")
    setting(page, "Length", 60)
    return page


def ask(page, prompt):
    page.locator("#ask textarea").fill(prompt)


def setting(page, name, value):
    field = page.locator("#settings").get_by_label(name, exact=False).and_(page.locator("input[type=number]"))
    field.fill(str(value))
    field.blur()


def keep_seed(page, seed):
    setting(page, "Seed", seed)
    page.wait_for_function("document.querySelector('#settings input[type=checkbox]').checked")


def write(page, length=60) -> list[str]:
    """Click, wait for the end, and read the texts."""
    page.click("#write")
    return finished(page, length)


def finished(page, length=60) -> list[str]:
    page.locator("#stop").wait_for()
    page.locator("#write").wait_for()
    assert page.inner_text("#status").startswith(f"{length} characters")
    return texts(page)


def texts(page) -> list[str]:
    return page.locator(".text").all_text_contents()


def lengths(page) -> list[int]:
    """The number of tokens of each text, without its prompt."""
    return [text.locator("i").count() for text in page.locator(".text").all()]


def seed_of(page) -> int:
    return int(page.inner_text("#status code"))


def tip(page) -> list[tuple[str, str]]:
    """The rows of the open tooltip."""
    rows = page.locator("#tip > div").all()
    return [(row.locator("span").first.text_content(), row.locator("span").last.text_content()) for row in rows]


# ---- Opening -------------------------------------------------------------------------------------------------------


def test_the_page_opens_with_a_finished_text_of_each_model_and_its_loss(visit, address):
    page = visit(address)
    page.wait_for_selector(".text")
    assert lengths(page) == [300, 300]
    prompt = page.locator("#ask textarea").input_value()
    assert all(text.startswith(prompt) for text in texts(page))
    headings = page.locator(".model").all_inner_texts()
    assert [heading.splitlines()[0] for heading in headings] == ["bottles/checkpoint-10", "bottles"]
    assert all("validation loss" in heading for heading in headings)
    assert not page.locator("#stop").is_visible()


# ---- Writing -------------------------------------------------------------------------------------------------------


def test_both_models_continue_the_prompt_as_it_is_written(page):
    setting(page, "Length", 1000)
    page.click("#write")
    page.wait_for_function("document.querySelector('.text')?.textContent.startsWith('12 green')")
    early = lengths(page)
    assert all(text.startswith("12 green") for text in finished(page, 1000))
    assert all(0 < number < 1000 for number in early)
    assert lengths(page) == [1000, 1000]
    assert len(set(texts(page))) == 2


def test_stop_is_there_while_a_text_is_written_and_keeps_what_there_is(page):
    setting(page, "Length", 1000)
    page.click("#write")
    page.locator("#stop").click()
    page.locator("#write").wait_for()
    assert not page.locator("#stop").is_visible()
    assert "stopped" in page.inner_text("#status")
    stopped = texts(page)
    assert lengths(page) == [int(page.inner_text("#status").split()[0])] * 2
    assert lengths(page)[0] < 1000
    page.wait_for_timeout(700)
    assert texts(page) == stopped


def test_write_takes_a_new_seed_and_shows_it(page):
    first, seed = write(page), seed_of(page)
    assert write(page) != first
    assert seed_of(page) != seed
    assert page.get_by_text(f"seed {seed_of(page)}", exact=True).count() == 2


def test_a_seed_that_is_kept_repeats_the_text_and_temperature_changes_it(page):
    keep_seed(page, 5)
    first = write(page)
    ask(page, "7")
    write(page)
    ask(page, "12 green")
    assert write(page) == first
    setting(page, "Temperature", 2)
    assert write(page) != first


def test_samples_of_two_models_stand_side_by_side_in_rows(page):
    setting(page, "Samples", 3)
    keep_seed(page, 5)
    assert len(set(write(page))) == 6
    boxes = [box.bounding_box() for box in page.locator(".slot .bar").all() if box.is_visible()]
    assert [box["y"] for box in boxes[:3]] == [box["y"] for box in boxes[3:]]
    assert boxes[0]["x"] < boxes[3]["x"]
    assert page.locator(".slot .bar span").all_inner_texts() == ["seed 5", "seed 6", "seed 7"] * 2
    setting(page, "Samples", 1)
    assert len(write(page)) == 2


def test_an_example_replaces_the_text_that_is_being_written(page):
    setting(page, "Length", 1000)
    page.click("#write")
    page.wait_for_function("document.querySelector('.text')?.textContent.startsWith('12 green')")
    example = page.locator("#examples button").last
    example.click()
    page.wait_for_function("document.querySelector('.text')?.textContent.startsWith('12 green') === false")
    assert page.locator("#stop").is_visible()
    assert not any(text.startswith("12 green") for text in finished(page, 1000))
    assert lengths(page) == [1000, 1000]


def test_an_example_is_written_with_one_click(page):
    page.locator("#examples button").last.click()
    assert all(text.startswith("\n") for text in finished(page))


def test_text_and_seed_are_copied(page):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    written = write(page)
    copied = []
    for button in (page.locator(".slot .copy").last, page.locator("#status .copy")):
        button.click()
        page.wait_for_function("button => button.textContent == 'Copied'", arg=button.element_handle())
        copied.append(page.evaluate("navigator.clipboard.readText()"))
    assert copied == [written[-1], str(seed_of(page))]


def test_unseen_characters_are_named_and_nothing_is_written(page):
    ask(page, "12 ï <b>☃</b>")
    page.click("#write")
    page.wait_for_selector("#status .error")
    message = page.inner_text("#status")
    assert "'ï' (U+00EF), '<' (U+003C)" in message
    assert "(U+2603)" in message
    assert texts(page) == []
    ask(page, "12")
    assert len(write(page)) == 2


# ---- Looking inside ------------------------------------------------------------------------------------------------


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


def test_a_click_shows_what_was_attended_to_in_any_layer_and_head(page):
    write(page)
    text = page.locator(".text").last
    text.locator("i").nth(10).click()
    read = page.locator(".read")
    read.wait_for()
    assert read.text_content() == "12 green" + "".join(text.locator("i").all_text_contents()[:10])
    assert sum(float(i.get_attribute("data-weight")) for i in read.locator("i").all()) == pytest.approx(1, abs=0.01)
    seen = {page.inner_html("#picture")}
    for name, number in (("#head", 2), ("#layer", 2)):
        before = page.inner_html("#picture")
        page.locator(f"{name} label").nth(number - 1).click()
        page.wait_for_function("html => document.querySelector('#picture').innerHTML != html", arg=before)
        seen.add(page.inner_html("#picture"))
    assert len(seen) == 3
    assert "bottles attended to" in page.inner_text("#picture")
    assert "layer 2, head 2" in page.inner_text("#picture")


def test_attention_is_cleared_while_a_new_text_is_written(page):
    setting(page, "Length", 1000)
    page.locator(".text i").nth(10).click()
    page.locator(".read").wait_for()
    page.click("#write")
    page.locator(".read").wait_for(state="detached")
    page.locator("#stop").click()


def test_the_page_works_without_a_mouse(page):
    page.locator("#ask textarea").focus()
    page.keyboard.press("Shift+Enter")
    finished(page)
    page.locator(".text").last.focus()
    told = []
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft"):
        page.keyboard.press(key)
        told.append((page.locator(".text i.on").count(), tip(page)))
    assert told[0] == told[2] != told[1]
    assert told[0][0] == 1
    page.keyboard.press("Enter")
    page.locator(".read").wait_for()
    page.keyboard.press("Escape")
    assert page.locator("#tip").is_hidden()


# ---- Small and dark ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_all_without_scrolling_sideways(visit, address, scheme):
    size = {"width": 390, "height": 844}
    page = visit(address, viewport=size, color_scheme=scheme, has_touch=True, is_mobile=True)
    page.wait_for_selector("#write")
    setting(page, "Length", 60)
    setting(page, "Samples", 2)
    page.locator("#write").tap()
    finished(page)
    assert "Tap" in page.inner_text(".facts >> nth=0")
    page.locator(".text i").nth(15).tap()
    page.locator("#tip").wait_for()
    boxes = [page.locator("#tip").bounding_box()]
    page.locator(".read").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    boxes += [page.locator(selector).first.bounding_box() for selector in ("#write", ".text", ".read")]
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= 390 for box in boxes)
    page.evaluate("scrollTo(0, 0)")
    assert page.locator(".text").first.bounding_box()["y"] < 844  # the text is seen without scrolling down
    background = page.evaluate("getComputedStyle(document.querySelector('.text')).backgroundColor")
    brightness = sum(map(int, background.removeprefix("rgb(").removesuffix(")").split(","))) / 3
    assert (brightness > 200) == (scheme == "light")
