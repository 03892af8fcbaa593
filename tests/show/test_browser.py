"""Notebooks in a real browser: JupyterLab on a loopback port, Debian's chromium, keys pressed, pictures that change.

Needs chromium (apt-get install chromium) and playwright (pip install playwright; it need not download a browser).
SAGKIT_REQUIRE_BROWSER=1 turns a skip into a failure. Screenshots go to SAGKIT_SCREENSHOTS, or runs/ci.
"""

import hashlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHOTS = Path(os.environ.get("SAGKIT_SCREENSHOTS", ROOT / "runs/ci"))
MINUTES = 60_000  # in milliseconds; generous, since a busy machine is no fault of the notebooks


def missing(what: str) -> None:
    """Skip, or fail where a browser is required, saying what to install."""
    if os.environ.get("SAGKIT_REQUIRE_BROWSER") == "1":
        pytest.fail(f"SAGKIT_REQUIRE_BROWSER=1, and {what}", pytrace=False)
    pytest.skip(what)


@pytest.fixture(scope="module")
def chromium() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        missing("there is no chromium: apt-get install -y chromium")
    return found


@pytest.fixture(scope="module")
def browser(chromium):
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("there is no playwright: PLAYWRIGHT_SKIP_BROWSER_DOWNLOAD=1 pip install playwright")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield started
        started.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Address and token of a JupyterLab that serves a scratch copy of the notebooks."""
    home = tmp_path_factory.mktemp("lab")
    (home / "figures").symlink_to(ROOT / "figures")  # notebooks read records from ../figures/results
    shutil.copytree(ROOT / "notebooks", home / "notebooks", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
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


def open_and_run(page, lab, notebook: str) -> None:
    """Open a notebook in JupyterLab, run all of it from the menu, and wait until the kernel is idle again."""
    address, token = lab
    page.goto(f"{address}/lab/tree/{notebook}?token={token}&reset")
    page.wait_for_selector(".jp-NotebookPanel .jp-Cell", timeout=2 * MINUTES)
    page.wait_for_selector("text=/ipykernel.*Idle/", timeout=2 * MINUTES)  # the status bar, once a kernel is there
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status='busy']", timeout=MINUTES)
    page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status='idle']", timeout=8 * MINUTES)


def slider(page, label: str):
    """The handle of a slider, by the text before it, brought into view."""
    row = in_view(page, page.locator(".widget-slider", has=page.locator(".widget-label", has_text=label)).first)
    return row, row.locator(".noUi-handle")


def in_view(page, row):
    """A row of controls, once the page has been scrolled to it: cells far from the window are not in the page."""
    for _ in range(60):
        if row.count():
            break
        page.mouse.wheel(0, 700)
        page.wait_for_timeout(250)
    row.scroll_into_view_if_needed(timeout=MINUTES)
    return row


def drawing(row) -> str:
    """Hash of the picture of the panel that holds a row of controls, as the browser has it."""
    source = row.evaluate(
        """async row => {
            for (;;) {  // the picture's address is a blob that is withdrawn while it is replaced
                try {
                    const image = row.closest('.jp-OutputArea').querySelector('img.widget-image');
                    return Array.from(new Uint8Array(await (await fetch(image.src)).arrayBuffer()));
                } catch (error) { await new Promise(done => setTimeout(done, 100)); }
            }
        }"""
    )
    return hashlib.sha256(bytes(source)).hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("notebook", "label"),
    [
        ("03_random_walks.ipynb", "walk length L"),
        ("04_pairs_and_loss.ipynb", "walk length L"),
        ("06_global_structure.ipynb", "clusters"),
    ],
)
def test_a_slider_moves_by_keyboard_and_the_picture_follows(browser, lab, notebook, label):
    SHOTS.mkdir(parents=True, exist_ok=True)
    page = browser.new_page(viewport={"width": 1400, "height": 1300})
    try:
        page.mouse.move(700, 700)
        open_and_run(page, lab, notebook)
        assert (
            page.locator(".jp-OutputArea-output[data-mime-type*='error'], .jp-RenderedText .ansi-red-fg").count() == 0
        )
        row, handle = slider(page, label)
        before, value = drawing(row), int(handle.get_attribute("aria-valuenow").split(".")[0])
        handle.focus()
        page.keyboard.press("ArrowRight")
        deadline = time.monotonic() + 60
        while drawing(row) == before and time.monotonic() < deadline:
            page.wait_for_timeout(200)
        assert int(handle.get_attribute("aria-valuenow").split(".")[0]) == value + 1
        assert drawing(row) != before
        row.scroll_into_view_if_needed()
        page.screenshot(path=SHOTS / f"{Path(notebook).stem}.png")
        page.keyboard.press("ArrowLeft")  # the same settings draw the same picture
        while drawing(row) != before and time.monotonic() < deadline + 60:
            page.wait_for_timeout(200)
        assert drawing(row) == before
    except Exception:
        page.screenshot(path=SHOTS / f"{Path(notebook).stem}-failed.png")
        raise
    finally:
        page.close()


@pytest.mark.slow
def test_a_search_goes_on_by_keyboard_and_back_returns(browser, lab):
    SHOTS.mkdir(parents=True, exist_ok=True)
    page = browser.new_page(viewport={"width": 1400, "height": 1300})
    try:
        page.mouse.move(700, 700)
        open_and_run(page, lab, "10_your_own_images.ipynb")
        label = page.locator(".widget-label", has_text="search on from")
        row = in_view(page, page.locator(".widget-hbox", has=label).last)
        before, drawn = drawing(row), None
        for name in ("3", "back"):
            button = row.get_by_role("button", name=name, exact=name == "3")  # back has an icon in its name
            button.focus()
            page.keyboard.press("Enter")
            deadline = time.monotonic() + 60
            while (drawing(row) == before) == (name == "3") and time.monotonic() < deadline:
                page.wait_for_timeout(200)
            drawn = drawing(row)
            assert (drawn == before) == (name == "back")
            if name == "3":
                row.scroll_into_view_if_needed()
                page.screenshot(path=SHOTS / "10_your_own_images.png")
    except Exception:
        page.screenshot(path=SHOTS / "10_your_own_images-failed.png")
        raise
    finally:
        page.close()
