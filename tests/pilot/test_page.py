"""The pilot's page in a browser: nothing is fetched, names are text, the map answers, and a thousand pictures fit."""

import os
import shutil

import pytest
import torch

from sagkit.data.load import ImageSet, make_shapes
from sagkit.metrics.local import Index
from sagkit.pilot.embedding import Embedding
from sagkit.pilot.page import Findings, Learnt, above_pixels, findings_page, meaning, next_steps

WICKED = "a/<script>document.title='gone'</script>.png"


def findings(images: torch.Tensor, here: float = 0.5, pixels: float = 0.3) -> Findings:
    """Findings on pictures whose features are noise, with known anomalies and a group of duplicates."""
    n = len(images)
    features = torch.randn(n, 8, generator=torch.Generator().manual_seed(0))
    names = (WICKED, *(f"b/{i}.png" for i in range(1, n)))
    labels = torch.arange(n) % 2
    similarity, neighbors = Index(features).similar(12)
    score = features.norm(dim=1)
    structure = {"label_free": 0.4, "label_free_low": 0.35, "label_free_high": 0.45}
    return Findings(
        source="photos of <b>",
        images=ImageSet(images, labels, ("a", "b"), names),
        duplicates=[[3, 5]],
        learnt=Learnt(torch.nn.Identity(), "an encoder"),
        odd=torch.arange(n) < 4,
        diagnoses=[],
        seconds={"reading": 1.0},
        embedding=Embedding(features, names),
        similarity=similarity,
        neighbors=neighbors,
        anomaly={"distance": score, "walks": -score},
        structure={"this encoder": structure, "raw pixels": structure},
        precision={"this encoder": here, "raw pixels": pixels},
        precision_k=10,
        auroc={"this encoder": {"distance": 0.9, "walks": 0.1}, "raw pixels": {"distance": 0.6, "walks": 0.4}},
    )


@pytest.fixture(scope="module")
def browser():
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    sync = pytest.importorskip("playwright.sync_api")
    if found is None:
        require = os.environ.get("SAGKIT_REQUIRE_BROWSER") == "1"
        (pytest.fail if require else pytest.skip)("there is no chromium: apt-get install -y chromium")
    with sync.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.mark.slow  # starts a browser
def test_the_map_answers_names_are_text_and_nothing_is_fetched(browser, tmp_path):
    (tmp_path / "report.html").write_text(findings_page(findings(make_shapes(60, size=32).images)), encoding="utf-8")
    page, errors, asked = browser.new_page(), [], []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto((tmp_path / "report.html").as_uri())
    assert page.title() == "Pilot: photos of <b>"
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    # The most anomalous picture is chosen at first; a look-alike leads on, and back again.
    first = page.inner_text("#said")
    assert first.startswith("anomaly rank 1 of 60")
    page.click("#near .tile >> nth=0")
    second = page.inner_text("#said")
    assert second != first
    page.click("#back")
    assert page.inner_text("#said") == first
    page.fill("#find", "<script>")
    assert page.inner_text("#query figcaption").startswith("script>.png")
    # Pointing shows a name, the wheel zooms, a click on the map chooses.
    box = page.locator("#map canvas").bounding_box()
    places = page.evaluate("data.names.map((_, i) => place(i))")
    before = page.evaluate("view.zoom")
    page.mouse.move(box["x"] + places[7][0], box["y"] + places[7][1])
    assert "b/" in page.inner_text("#tip")
    page.mouse.wheel(0, -400)
    page.wait_for_function(f"view.zoom > {before}")
    page.click("[aria-label='whole map']")
    page.mouse.click(box["x"] + places[7][0], box["y"] + places[7][1])
    assert page.evaluate("chosen") == page.evaluate("nearest(...place(7))")
    assert errors == []
    page.close()


@pytest.mark.slow  # a thousand pictures are drawn and laid out
def test_a_thousand_pictures_are_below_five_megabytes():
    noisy = torch.randint(256, (1000, 3, 64, 64), dtype=torch.uint8)  # nothing compresses worse
    smooth = torch.nn.functional.avg_pool2d(noisy.float(), 3, 1, 1).byte()  # as rough as photographs at most
    assert len(findings_page(findings(smooth)).encode()) < 5_000_000


def test_a_large_folder_is_shown_in_part_with_all_that_is_listed(monkeypatch):
    monkeypatch.setattr("sagkit.pilot.page.MAPPED", 40)
    found = findings(make_shapes(200, size=8).images)
    text = findings_page(found)
    assert "of the 200 pictures" in text
    listed = found.anomaly["distance"].topk(20).indices.tolist()
    assert all(found.embedding.names[i] in text for i in listed if i)


@pytest.mark.parametrize(("here", "above"), [(0.5, True), (0.31, False), (0.2, False)])
def test_the_first_sentence_says_whether_the_encoder_is_above_raw_pixels(here, above):
    found = findings(make_shapes(60, size=8).images, here, 0.3)
    assert above_pixels(found) is above
    assert ("is not above raw pixels" in meaning(found)[0]) is not above
    assert ("Leave --encoder out" in next_steps(found)[0]) is not above
    found.precision = {}  # without class folders, intervals of the label-free score that overlap
    assert above_pixels(found) is False
