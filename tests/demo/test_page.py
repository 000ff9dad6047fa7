"""The page in a browser: what a user draws, clicks, types and uploads, and what is read then."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="needs Playwright: make test-demo has it"
)

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "cifar_param" / "attention56_small_shapes_0.9930_315e1841.param"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
WAIT_MS = 60_000
# Strokes on the pad, as parts of its edge.
DIGITS = {
    0: [[(0.5, 0.2), (0.3, 0.35), (0.28, 0.65), (0.5, 0.82), (0.7, 0.65), (0.7, 0.35), (0.5, 0.2)]],
    1: [[(0.55, 0.15), (0.47, 0.85)]],
    4: [[(0.35, 0.2), (0.3, 0.5), (0.7, 0.5)], [(0.65, 0.2), (0.62, 0.85)]],
    7: [[(0.28, 0.2), (0.72, 0.2), (0.45, 0.85)]],
}

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Give a function that opens a page of a width; a browser runs for each."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"needs a browser: install one of {', '.join(BROWSERS)}")
    with sync_api.sync_playwright() as playwright:
        opened = []

        def open_browser(width: int, touch: bool = False) -> Any:
            context = playwright.chromium.launch_persistent_context(
                tmp_path_factory.mktemp("profile"), executable_path=program, args=list(FLAGS),
                viewport={"width": width, "height": 900}, has_touch=touch, reduced_motion="reduce",
            )  # fmt: skip
            opened.append(context)
            context.set_default_timeout(WAIT_MS)
            return context.new_page()

        yield open_browser
        for context in opened:
            context.close()


@pytest.fixture(scope="module")
def desktop(browser: Any, address: str) -> Iterator[Any]:
    """Give the page on a wide screen; fails when anything came from elsewhere or went wrong."""
    page, strangers, errors = browser(1280), [], []
    page.on("request", lambda request: strangers.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address)
    ready(page)
    yield page
    assert [url for url in strangers if not url.startswith((address, "data:", "blob:"))] == []
    assert errors == []


def ready(page: Any) -> None:
    page.wait_for_selector("#digit-bars .bar")
    page.wait_for_selector("#picture-bars .bar")


def answered(page: Any, path: str, action: Any) -> tuple[str, dict[str, Any]]:
    """Do something and return the question that it asked and the answer, once it is shown."""
    with page.expect_response(re.compile(rf"/{path}\?")) as caught:
        action()
    answer = caught.value.json()
    page.wait_for_selector("section.busy", state="detached")
    return caught.value.url, answer


def draw(page: Any, digit: int) -> int:
    """Draw a digit with the mouse; return the one that the page reads."""
    page.click("#clear")
    assert page.inner_text("#digit-answer").strip() == ""
    box = page.locator("#pad").bounding_box()
    for points in DIGITS[digit]:
        places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
        page.mouse.move(*places[0])
        page.mouse.down()
        for place in places[1:]:
            page.mouse.move(*place, steps=6)
        answered(page, "digit", page.mouse.up)
    return int(page.inner_text("#digit-answer strong"))


@pytest.mark.parametrize("digit", DIGITS)
def test_a_drawn_digit_is_read(desktop: Any, digit: int) -> None:
    assert draw(desktop, digit) == digit


def test_looks_are_shown_one_after_the_other(desktop: Any) -> None:
    draw(desktop, 7)
    assert desktop.inner_text("#step-text") == "6 of 6"
    assert desktop.locator("#patches .patch").count() == 6
    shown = desktop.evaluate("document.getElementById('view').toDataURL()")
    desktop.focus("#step")
    desktop.keyboard.press("ArrowLeft")
    assert desktop.inner_text("#step-text") == "5 of 6"
    assert desktop.locator("#patches .patch.later").count() == 1
    assert desktop.evaluate("document.getElementById('view').toDataURL()") != shown
    desktop.click("#play")
    for text in ("1 of 6", "6 of 6"):
        sync_api.expect(desktop.locator("#step-text")).to_have_text(text, timeout=WAIT_MS)


def test_the_first_look_goes_where_the_user_says(desktop: Any) -> None:
    box = desktop.locator("#view").bounding_box()
    place = {"x": 0.75 * box["width"], "y": 0.25 * box["height"]}
    _, answer = answered(desktop, "digit", lambda: desktop.click("#view", position=place))
    left, top, right, bottom = answer["looks"][0]["boxes"][0]
    assert ((left + right) / 2, (top + bottom) / 2) == pytest.approx((21, 7), abs=1)
    desktop.focus("#view")
    _, moved = answered(desktop, "digit", lambda: desktop.keyboard.press("ArrowLeft"))
    assert moved["looks"][0]["boxes"][0][0] < left


def test_a_test_image_is_taken_by_keyboard(desktop: Any) -> None:
    desktop.fill("#test-digit", "3")
    url, answer = answered(desktop, "digit", lambda: desktop.press("#test-digit", "Enter"))
    assert "test=3" in url
    assert f"the label says {answer['label']}" in desktop.inner_text("#digit-answer")


def test_clutter_can_be_drawn_anew(desktop: Any) -> None:
    def choose() -> None:
        desktop.select_option("#glimpse-model", "cluttered")

    _, first = answered(desktop, "digit", choose)
    assert (first["size"], len(first["looks"])) == (60, 8)
    _, second = answered(desktop, "digit", lambda: desktop.click("#reseed"))
    assert first["image"] != second["image"]
    answered(desktop, "digit", lambda: desktop.select_option("#glimpse-model", "one digit"))


def test_an_answer_that_comes_after_clear_is_left_out(desktop: Any) -> None:
    with desktop.expect_response(re.compile(r"/digit\?")):
        desktop.evaluate("document.getElementById('take-digit').click()")
        desktop.evaluate("document.getElementById('clear').click()")
    desktop.wait_for_selector("section.busy", state="detached")
    assert desktop.inner_text("#digit-answer").strip() == ""
    desktop.click("#play")
    assert desktop.inner_text("#step-text") == ""


def test_a_network_without_test_images_shows_nothing_of_the_one_before(desktop: Any) -> None:
    """As on a machine that does not have the second network's data."""
    names = desktop.eval_on_selector_all("#masks-model option", "all => all.map((o) => o.value)")
    other = next(name for name in names if "shapes" not in name)
    desktop.route("**/thumbnails?*", lambda route: route.fulfill(json={"images": []}))
    answered(desktop, "thumbnails", lambda: desktop.select_option("#masks-model", other))
    desktop.unroute("**/thumbnails?*")
    assert desktop.locator("#modules figure").count() == 0
    assert desktop.inner_text("#picture-card summary").strip() == ""
    assert desktop.inner_text("#picture-answer") == "Choose a picture of your own."
    desktop.focus("#strength")
    desktop.keyboard.press("ArrowLeft")
    assert desktop.locator("#modules figure").count() == 0
    answered(desktop, "picture", lambda: desktop.select_option("#masks-model", names[0]))
    assert desktop.locator("#modules figure").count() == 4


def upload(page: Any, content: bytes, name: str = "mine.png") -> dict[str, Any]:
    file = {"name": name, "mimeType": "image/png", "buffer": content}
    return answered(page, "picture", lambda: page.set_input_files("#upload", file))[1]


def picture(seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 9, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).resize((180, 120), Image.Resampling.BICUBIC).save(stream, "PNG")
    return stream.getvalue()


def test_an_uploaded_picture_gets_the_classes_of_predict(desktop: Any, tmp_path: Path) -> None:
    path = tmp_path / "mine.png"
    path.write_bytes(picture())
    command = [sys.executable, "train_cifar.py", "--predict", str(FILE), str(path)]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    wanted = re.findall(r"([\d.]+)%  (\w+)", said)
    upload(desktop, path.read_bytes())
    rows = desktop.locator("#picture-bars .bar").all_inner_texts()
    shown = [re.findall(r"[\w.]+", row)[:2] for row in rows]
    assert [name for name, _ in shown] == [name for _, name in wanted]
    for (_, share), (exact, _) in zip(shown, wanted):
        assert float(share) == pytest.approx(float(exact), abs=0.1)


def test_masks_follow_the_controls(desktop: Any) -> None:
    def canvases() -> list[str]:
        every = "[...document.querySelectorAll('#modules canvas')].map(c => c.toDataURL())"
        found: list[str] = desktop.evaluate(every)
        return found

    answer = upload(desktop, picture(1))
    first = canvases()
    assert len(first) == 1 + len(answer["modules"]) == 4
    desktop.focus("#strength")
    desktop.keyboard.press("Home")
    bare = canvases()
    assert bare[0] == first[0]
    assert all(a != b for a, b in zip(bare[1:], first[1:]))
    desktop.keyboard.press("End")
    ranges = set()
    for kind in ("M", "1 + M", "change"):
        desktop.check(f"input[value='{kind}']")
        ranges.add(desktop.inner_text("#modules figure:last-child figcaption"))
    assert len(ranges) == 3


@pytest.mark.parametrize(
    "content", [b"no picture", b"<svg onload='document.title=1'></svg>", picture()[:300]]
)
def test_a_wrong_upload_gets_one_sentence_and_the_next_one_is_taken(
    desktop: Any, content: bytes
) -> None:
    upload(desktop, content)
    said = desktop.inner_text("#picture-error")
    assert said.startswith("cannot read the picture: ")
    assert "\n" not in said
    upload(desktop, picture(2))
    assert desktop.inner_text("#picture-error") == ""


def test_too_large_an_upload_is_not_sent(desktop: Any, tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    path.write_bytes(os.urandom(10_000_001))
    desktop.set_input_files("#upload", path)
    error = desktop.locator("#picture-error")
    sync_api.expect(error).to_contain_text("more than 10 MB", timeout=WAIT_MS)


def test_the_card_says_which_file_computes(desktop: Any) -> None:
    desktop.click("#digit-card summary")
    assert "glimpse_mnist_0.88" in desktop.inner_text("#digit-card summary")
    assert "train_mnist_glimpse.py --epochs 280" in desktop.inner_text("#digit-card dl")
    desktop.click("#digit-card summary")


def test_a_phone_shows_all_and_a_finger_draws(browser: Any, address: str) -> None:
    page = browser(390, touch=True)
    page.goto(address)
    ready(page)
    widths = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert widths[0] <= widths[1]
    page.tap("#clear")
    box = page.locator("#pad").bounding_box()
    finger = page.context.new_cdp_session(page)

    def touch(kind: str, *place: float) -> None:
        points = [{"x": place[0], "y": place[1]}] if place else []
        finger.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    (points,) = DIGITS[7]
    ends = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    places = [
        (a[0] + t * (b[0] - a[0]) / 8, a[1] + t * (b[1] - a[1]) / 8)
        for a, b in zip(ends, ends[1:])
        for t in range(9)
    ]
    touch("touchStart", *places[0])
    for place in places[1:]:
        touch("touchMove", *place)
    answered(page, "digit", lambda: touch("touchEnd"))
    assert page.inner_text("#digit-answer strong") == "7"
