"""The explorer in a real browser: its page, and once in JupyterLab; clicked, played, typed to, saved, and looked at.

Needs chromium (apt-get install chromium) and playwright (pip install playwright; it need not download a browser).
SAGKIT_REQUIRE_BROWSER=1 turns a skip into a failure. Screenshots go to SAGKIT_SCREENSHOTS, or runs/ci.
"""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sagkit.data.load import make_shapes
from sagkit.show.answers import Setting
from sagkit.show.explore import make_explorer
from sagkit.show.scene import make_scene
from sagkit.show.serve import Server

ROOT = Path(__file__).parents[2]
SHOTS = Path(os.environ.get("SAGKIT_SCREENSHOTS", ROOT / "runs/ci"))
MINUTES = 60_000  # in milliseconds; generous, since a busy machine is no fault of the page
N = 120

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("browser")]  # one browser, started once


def missing(what: str) -> None:
    """Skip, or fail where a browser is required, saying what to install."""
    if os.environ.get("SAGKIT_REQUIRE_BROWSER") == "1":
        pytest.fail(f"SAGKIT_REQUIRE_BROWSER=1, and {what}", pytrace=False)
    pytest.skip(what)


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        missing("there is no chromium: apt-get install -y chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("there is no playwright: PLAYWRIGHT_SKIP_BROWSER_DOWNLOAD=1 pip install playwright")
    SHOTS.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def explorer():
    return make_explorer(make_shapes(N, size=32, seed=0), progress=False)


@pytest.fixture(scope="module")
def address(explorer):
    """The page; its refined map is the first one mirrored, which takes no time."""

    def ask(question):
        if question["about"] == "map":
            return {"name": "UMAP", "xy": (-explorer.scene.plane).tolist()}
        return explorer.ask(question)

    with Server(ask) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.address
        server.shutdown()


@pytest.fixture
def page(browser, address):
    # Playwright's waiting evaluates text, which the page's own policy forbids.
    opened = browser.new_page(viewport={"width": 1280, "height": 1300}, reduced_motion="reduce", bypass_csp=True)
    opened.set_default_timeout(MINUTES)
    faults = []
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.goto(address)
    opened.wait_for_selector(".sag[data-shown][data-map='UMAP']")
    yield opened
    opened.close()
    assert not faults


def anchor(page) -> int:
    return int(page.locator(".sag").get_attribute("data-anchor"))


def at(page, explorer, row: int) -> tuple[float, float]:
    """Where the page's map has a row: 26 pixels inside its edges, the refined map being the first one mirrored."""
    plane = -explorer.scene.plane
    x, y = (plane[row] - plane.min(axis=0)) / np.ptp(plane, axis=0)
    box = page.locator(".sag-canvas canvas").bounding_box()
    return box["x"] + 26 + x * (box["width"] - 52), box["y"] + 26 + (1 - y) * (box["height"] - 52)


def saved(page, kind: str, tmp_path) -> Path:
    page.get_by_role("button", name="Save").click()
    with page.expect_download() as download:
        page.get_by_role("button", name=kind, exact=True).click()
    download.value.save_as(tmp_path / download.value.suggested_filename)
    return tmp_path / download.value.suggested_filename


# Of every step: its number, the image it marks, and how many numbers the neighbourhood shows by then.
WATCH = """() => {
    window.seen = [];
    const walk = document.querySelector('.sag-walk');
    new MutationObserver(() => {
        const step = Number(walk.dataset.step), current = walk.querySelector('[aria-current=step] [data-row]');
        const badges = [...document.querySelectorAll('.sag-badge-text')].flatMap(b => b.textContent.split('·'));
        window.seen.push([step, Number(current.dataset.row), badges.length]);
    }).observe(walk, { attributes: true, attributeFilter: ['data-step'] });
}"""


def test_an_anchor_is_clicked_its_walk_played_and_the_picture_saved(page, explorer, tmp_path):
    page.mouse.click(*at(page, explorer, 17))
    page.wait_for_selector(".sag[data-anchor='17']")
    walk = explorer.answer(Setting(anchor=17))["walk"]["steps"]
    page.evaluate(WATCH)
    page.get_by_label("speed").select_option("4")
    page.get_by_role("button", name="play the walk").click()
    page.wait_for_function("window.seen.length == 5")
    page.get_by_role("button", name="play the walk").wait_for()  # it has stopped by itself
    assert page.evaluate("window.seen") == [[i, one["row"], i + 1] for i, one in enumerate(walk)]
    picture = Image.open(saved(page, "PNG", tmp_path)).convert("RGB")
    shown = page.locator(".sag").bounding_box()
    assert abs(picture.width - 2 * shown["width"]) <= 2
    page.locator(".sag").screenshot(path=SHOTS / "explore.png")
    small = (picture.width // 8, picture.height // 8)
    screen = Image.open(SHOTS / "explore.png").convert("RGB")
    drawn, screen = (np.asarray(image.resize(small)).astype(float) for image in (picture, screen))
    assert np.abs(drawn - screen).mean() < 12  # what is saved is what is seen
    picture.save(SHOTS / "explore-saved.png")
    drawing = ElementTree.parse(saved(page, "SVG", tmp_path)).getroot()
    words = " ".join(drawing.itertext())
    assert "Neighbourhood" in words
    assert "Look-alikes" in words
    hrefs = [part.get("href") for part in drawing.iter() if part.get("href")]
    assert len(hrefs) > 30
    assert all(href.startswith("data:image/") for href in hrefs)
    page.get_by_role("button", name="Save").click()
    page.get_by_role("button", name="Code", exact=True).click()
    assert page.get_by_label("this setting as code").input_value() == explorer.code(Setting(anchor=17))


def test_all_of_it_works_by_keyboard(page, explorer):
    before = anchor(page)
    page.locator(".sag-canvas canvas").focus()
    page.keyboard.press("ArrowRight")
    assert "Enter makes it the anchor" in page.locator(".sag-says").inner_text()
    page.keyboard.press("Enter")
    page.wait_for_function(f"document.querySelector('.sag').dataset.anchor != {before}")
    page.keyboard.press("+")
    page.keyboard.press("b")  # the images in view
    page.get_by_role("button", name="All images").wait_for()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="All images").wait_for(state="hidden")
    moved = anchor(page)
    first = page.locator(".sag-part[aria-label='Look-alikes'] [data-rove]").first
    first.focus()
    page.keyboard.press("ArrowRight")
    expected = explorer.answer(Setting(anchor=moved))["alike"][1]["row"]
    assert page.evaluate("document.activeElement.dataset.row") == str(expected)
    page.keyboard.press("Enter")
    page.wait_for_selector(f".sag[data-anchor='{expected}']")
    page.get_by_role("button", name="Back", exact=True).click()
    page.wait_for_selector(f".sag[data-anchor='{moved}']")
    slider = page.get_by_label("neighbours K")
    slider.focus()
    page.keyboard.press("ArrowLeft")
    page.get_by_text("9 neighbours, and").wait_for()
    page.get_by_role("button", name="Reset").click()
    page.get_by_text("10 neighbours, and").wait_for()
    page.wait_for_selector(f".sag[data-anchor='{before}']")


def test_a_lasso_makes_a_batch_and_too_small_a_one_is_refused_without_moving_the_picture(page, explorer):
    canvas = page.locator(".sag-canvas canvas").bounding_box()

    def lasso(x, y, wide, high):
        corners = [(x, y), (x + wide, y), (x + wide, y + high), (x, y + high)]
        page.keyboard.down("Shift")
        page.mouse.move(*corners[0])
        page.mouse.down()
        for corner in corners[1:]:
            page.mouse.move(*corner)
        page.mouse.up()
        page.keyboard.up("Shift")

    half = (canvas["x"] + 3, canvas["y"] + 3, canvas["width"] / 2, canvas["height"] - 6)
    lasso(*half)
    inside = sum(at(page, explorer, row)[0] < half[0] + half[2] for row in range(N))
    page.get_by_text(f"Batch of {inside}:").wait_for()
    assert page.locator(".sag-refusal").is_hidden()
    placed = page.locator(".sag-stage").bounding_box()
    x, y = at(page, explorer, 17)
    lasso(x - 4, y - 4, 8, 8)
    page.locator(".sag-refusal").wait_for()
    assert "Not possible" in page.get_by_role("alert").inner_text()
    assert page.locator(".sag-stage").bounding_box() == placed
    page.wait_for_function("getComputedStyle(document.querySelector('.sag-stage')).opacity < 0.5")
    page.get_by_role("button", name="Reset").click()
    page.locator(".sag-refusal").wait_for(state="hidden")
    page.get_by_label("seed").fill("-3")
    page.keyboard.press("Tab")
    assert "choose a whole number from 0 to" in page.get_by_role("alert").inner_text()
    page.get_by_label("seed").fill("3")
    page.keyboard.press("Tab")
    page.locator(".sag-refusal").wait_for(state="hidden")


def test_everything_has_a_name_and_tracks_are_wide(page):
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('button, img, input, select, canvas, [role]')]
            .filter(e => e.getClientRects().length && e.tagName !== 'P' && e.role !== 'alert')
            .filter(e => !(e.ariaLabel || e.alt || e.textContent.trim() || e.labels?.length))
            .map(e => e.outerHTML.slice(0, 120))"""
    )
    assert nameless == []
    tracks = page.locator(".sag input[type=range]").all()
    widths = [track.bounding_box()["width"] for track in tracks]
    assert len(widths) >= 4
    assert min(widths) >= 220
    tabs = page.evaluate("""document.querySelectorAll('.sag [tabindex="0"]').length""")
    assert tabs <= 6  # one for each group of pictures, and the map


def test_it_is_dark_where_the_page_is_and_narrow_where_the_window_is(browser, address):
    page = browser.new_page(viewport={"width": 1280, "height": 1300}, color_scheme="dark")
    page.goto(address)
    page.wait_for_selector(".sag[data-shown][data-theme='dark']", timeout=MINUTES)
    page.wait_for_timeout(1500)
    page.screenshot(path=SHOTS / "explore-dark.png", full_page=True)
    assert np.asarray(Image.open(SHOTS / "explore-dark.png").convert("L")).mean() < 90
    page.set_viewport_size({"width": 420, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= 420
    page.close()


def test_markup_in_a_name_is_shown_and_not_run(browser, explorer):
    scene = explorer.scene
    names = [f"<img src=x onerror='window.ran = 1'> {i}" for i in range(N)]
    hostile = make_explorer(scene.images, scene.features, progress=False)
    hostile.scene = make_scene(scene.images, None, (), scene.features, names=names)
    with Server(lambda q: {"refused": "<b onclick=1>no"} if q["about"] == "map" else hostile.ask(q)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = browser.new_page()
        page.goto(server.address)
        page.wait_for_selector(".sag[data-shown]", timeout=MINUTES)
        page.get_by_text("<img src=x onerror").first.wait_for()
        page.locator(".sag-node").first.hover()
        page.wait_for_timeout(300)
        assert page.evaluate("window.ran") is None
        assert page.locator(".sag b[onclick]").count() == 0
        page.close()
        server.shutdown()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


CELL = """import sagkit
from sagkit.data.load import make_shapes
sagkit.explore(make_shapes(80), anchor=5, k=4)"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Address and token of a JupyterLab that serves a notebook of one cell."""
    home = tmp_path_factory.mktemp("lab")
    cell = {"cell_type": "code", "execution_count": None, "id": "a", "metadata": {}, "outputs": [], "source": CELL}
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = {"cells": [cell], "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
    (home / "notebooks").mkdir()
    (home / "notebooks/explore.ipynb").write_text(json.dumps(notebook))
    port, token = free_port(), secrets.token_hex(16)
    private = {
        name: str(home / name.lower()) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")
    }
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}"]
    command += [
        "--ServerApp.port_retries=0",
        f"--IdentityProvider.token={token}",
        f"--ServerApp.root_dir={home / 'notebooks'}",
    ]
    quiet = home / "settings/@jupyterlab/apputils-extension/notification.jupyterlab-settings"
    quiet.parent.mkdir(parents=True)
    quiet.write_text('{"fetchNews": "false", "checkForUpdates": false}')
    private["JUPYTERLAB_SETTINGS_DIR"] = str(home / "settings")
    log = (home / "log").open("w")
    server = subprocess.Popen(
        command, env={**os.environ, **private, "PYTHONPATH": paths}, stdout=log, stderr=log, start_new_session=True
    )
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(240):
            if server.poll() is not None:
                pytest.fail(f"JupyterLab ended: {(home / 'log').read_text()[-2000:]}", pytrace=False)
            try:
                urllib.request.urlopen(f"{address}/api?token={token}", timeout=2).close()
                break
            except (urllib.error.URLError, TimeoutError):
                time.sleep(0.5)
        else:
            pytest.fail(f"JupyterLab did not answer: {(home / 'log').read_text()[-2000:]}", pytrace=False)
        yield address, token
    finally:
        server.terminate()  # the server ends its kernels
        server.wait(timeout=30)
        log.close()


def test_in_jupyterlab_the_same_view_answers_the_kernel(browser, lab):
    address, token = lab
    page = browser.new_page(viewport={"width": 1500, "height": 1300})
    page.set_default_timeout(3 * MINUTES)
    try:
        page.goto(f"{address}/lab/tree/explore.ipynb?token={token}&reset")
        page.wait_for_selector("text=/ipykernel.*Idle/")  # the status bar, once a kernel is there
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        page.wait_for_selector(".sag[data-shown]")
        assert anchor(page) == 5
        node = page.locator(".sag-node").nth(3)
        row = int(node.get_attribute("data-row"))
        node.click()
        page.wait_for_selector(f".sag[data-anchor='{row}']")
        slider = page.get_by_label("walk length L")
        slider.focus()
        page.keyboard.press("ArrowRight")  # moves the slider and not the notebook's selection
        page.wait_for_function("document.querySelectorAll('.sag-strip li').length == 6")
        page.get_by_role("button", name="play the walk").click()
        for step in range(3):
            page.wait_for_selector(f".sag-walk[data-step='{step}']")
        page.locator(".sag").screenshot(path=SHOTS / "explore-jupyterlab.png")
    except Exception:
        page.screenshot(path=SHOTS / "explore-jupyterlab-failed.png")
        raise
    finally:
        page.close()
