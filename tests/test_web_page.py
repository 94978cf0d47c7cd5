"""The page of the bundle for the web, used as a person does: by keyboard, on a phone's screen, without a network."""

import json
import re
import shutil
import threading
from functools import partial
from http.server import ThreadingHTTPServer

import pytest
from bundle_project import shared
from test_verify import list_again

from benchmarks.ship import ask_transformers_js, why_not
from eval.pages import find_browser, why_missing
from export.bundles import web
from stages.commands.serve import Handler

REASON = web.why_unusable() or why_missing()
# Chromium and onnxruntime-web come with `make browser`, which `make test` does not promise; the reason says so.
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))
TIMEOUT_MS = 60_000


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return shared(tmp_path_factory)[1].bundles / "web"


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=find_browser(), args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


@pytest.fixture
def open_page(browser):
    """Opens the page of a folder as `decant serve` does; gives (page, what it complained of, the server)."""
    closers = []

    def open_one(folder, **context):
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        made = browser.new_context(**context)
        page = made.new_page()
        closers.extend([made.close, server.shutdown, server.server_close])
        said = []
        page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(f"http://127.0.0.1:{server.server_port}/")
        page.wait_for_selector("#status:has-text('Ready'), #status.bad", timeout=TIMEOUT_MS)
        return page, said, server

    yield open_one
    for close in closers:
        close()


def classify(page, text):
    """Types a text into the field that has the focus, and presses Enter."""
    page.keyboard.type(text)
    page.keyboard.press("Enter")
    page.wait_for_selector("#answers li", timeout=TIMEOUT_MS)
    return page.locator("#answers li span").first.inner_text()


def test_a_sentence_is_classified_by_keyboard_and_the_self_test_passes(bundle, open_page):
    """The field has the focus; Enter classifies; two steps on is the button."""
    page, said, _ = open_page(bundle)
    assert page.title() == "tiny"
    assert classify(page, "play the song") == "music"
    assert re.match(r"\d+\.\d ms; ", page.locator("#took").inner_text())
    bars = [page.locator(".bar span").nth(place).bounding_box()["width"] for place in range(3)]
    assert bars == sorted(bars, reverse=True) and bars[0] > 2 * bars[1]
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector("#tested:not(:empty)", timeout=TIMEOUT_MS)
    rows = len(json.loads((bundle / "golden.json").read_text("utf-8"))["rows"])
    assert page.locator("#tested").inner_text().startswith(f"✓ All {rows} golden vectors answered as they should be")
    assert said == []


def test_it_works_without_a_network_after_the_first_load(bundle, open_page):
    """Page, model and runtime come from what its worker kept; the server is gone."""
    page, _, server = open_page(bundle)
    page.wait_for_selector("html[data-offline=ready]", timeout=TIMEOUT_MS, state="attached")
    server.shutdown()
    server.server_close()
    page.context.set_offline(True)
    page.reload()
    page.wait_for_selector("#status:has-text('Ready')", timeout=TIMEOUT_MS)
    assert classify(page, "rain in the kitchen") == "weather"


def test_a_new_version_on_the_server_is_kept_whole_and_used_when_the_page_is_opened_again(bundle, open_page, tmp_path):
    """Half of it, as while files are copied, is not taken; nor is one under a page that is open."""
    folder = tmp_path / "web"
    shutil.copytree(bundle, folder)
    page, _, _ = open_page(folder)
    page.wait_for_selector("html[data-offline=ready]", timeout=TIMEOUT_MS, state="attached")
    model = json.loads((folder / "model.json").read_text("utf-8"))
    (folder / "model.json").write_text(json.dumps({**model, "labels": ["one", "two", "three"]}), "utf-8")
    list_again(folder, name="tiny two")
    new = (folder / "model.json").read_bytes()
    (folder / "model.json").write_bytes(new + b" ")  # the manifest went first
    page.reload()
    page.wait_for_selector("#status:has-text('Ready')", timeout=TIMEOUT_MS)
    assert (page.title(), classify(page, "play the song")) == ("tiny", "music")
    page.wait_for_timeout(1_000)
    page.reload()
    page.wait_for_selector("#status:has-text('Ready')", timeout=TIMEOUT_MS)
    assert page.title() == "tiny"
    (folder / "model.json").write_bytes(new)
    latest = f"http://{page.url.split('/')[2]}/latest"
    asked = f"fetch('manifest.json').then(() => caches.match('{latest}')).then((held) => held.text())"
    before = page.evaluate(asked)
    for _ in range(60):
        page.wait_for_timeout(500)
        if page.evaluate(asked) != before:
            break
    assert classify(page, "play the song") == "music"
    page.reload()
    page.wait_for_selector("#status:has-text('Ready')", timeout=TIMEOUT_MS)
    assert (page.title(), classify(page, "play the song") in ("one", "two", "three")) == ("tiny two", True)


@pytest.mark.parametrize("width", [320, 390, 1000])
def test_nothing_is_wider_than_the_window(bundle, open_page, width):
    page, _, _ = open_page(bundle, viewport={"width": width, "height": 700}, has_touch=width < 500)
    classify(page, "some very " + "long" * 30 + " text")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for name in ("#text", "#go", "#test"):
        assert page.locator(name).bounding_box()["height"] >= 44  # a finger's width


# Transformers.js comes with `make clients`, which `make test` does not promise.
@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_transformers_js_reads_the_same_folder(bundle):
    """Its pipeline, from the npm package, gives the labels that the bundle's own code gives."""
    assert ask_transformers_js(bundle, ["play the song", "rain today", "wake me please"]) == [
        "music",
        "weather",
        "alarm",
    ]


def test_a_bundle_that_answers_otherwise_says_so_in_words(bundle, open_page, tmp_path):
    """Planted: other labels, then a model that is none."""
    spoiled = tmp_path / "web"
    shutil.copytree(bundle, spoiled)
    model = json.loads((spoiled / "model.json").read_text("utf-8"))
    model["labels"].reverse()
    (spoiled / "model.json").write_text(json.dumps(model), "utf-8")
    page, _, _ = open_page(spoiled)
    page.locator("#test").click()
    page.wait_for_selector("#tested.bad", timeout=TIMEOUT_MS)
    assert re.match(r"✗ \d+ of \d+ golden vectors differ: do not ship this", page.locator("#tested").inner_text())
    (spoiled / "onnx" / "model.onnx").write_bytes(b"none")
    page, _, _ = open_page(spoiled)
    assert page.locator("#status").inner_text().startswith("✗ ")
    assert page.locator("#go").is_disabled()
