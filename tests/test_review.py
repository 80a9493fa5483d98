"""The review page, in a real browser, from disk."""

import shutil
import time

import numpy as np
import pytest
import tensorflow as tf

from mln_keras.command import review
from mln_keras.data import corrections, suspects
from mln_keras.data.checks import ArgumentError
from mln_keras.data.image_files import ImageFiles

CLASSES = ("cat", 'dog, "big"', "owl")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


def case(count, seed=0):
    """(probabilities, given labels, images) of samples, every fifth without a label."""
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.ones(len(CLASSES)), count).astype(np.float32)
    labels = np.where(np.arange(count) % 5 == 0, -1, rng.integers(0, len(CLASSES), count))
    return probabilities, labels, rng.integers(0, 256, (count, 8, 8, 1), np.uint8)


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in programs:
        pytest.skip("needs Debian's packages chromium and chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(programs[1]))
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
        "width": 1280, "height": 900, "deviceScaleFactor": 1, "mobile": False,
    })  # fmt: skip
    yield driver
    driver.quit()


class Page:
    """A review page in the browser, as a person uses it."""

    def __init__(self, driver, folder, count=120, run="a"):
        self.driver, self.folder = driver, folder
        self.probabilities, self.labels, images = case(count)
        self.found = suspects.find(self.probabilities, self.labels, CLASSES)
        review.write(folder, self.found, images, CLASSES, "Some <b>title</b>", run)
        driver.execute_cdp_cmd(
            "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder)}
        )
        self.open()

    def open(self):
        self.driver.get(f"file://{self.folder}/review/index.html")

    def run(self, script):
        return self.driver.execute_script(f"return {script}")

    def press(self, *keys):
        """Sends keys to whatever has the focus, which a key may draw anew."""
        from selenium.webdriver import ActionChains

        for key in keys:
            ActionChains(self.driver).send_keys(key).perform()

    def click(self, selector):
        self.driver.find_element("css selector", selector).click()

    def choose(self, identifier, text):
        from selenium.webdriver.support.ui import Select

        Select(self.driver.find_element("id", identifier)).select_by_visible_text(text)

    def decisions(self):
        """What the cards of this page say was decided, a list."""
        return self.run("[...document.querySelectorAll('.decision')].map(d => d.textContent)")

    def indices(self):
        text = "[...document.querySelectorAll('.numbers')].map(d => d.textContent)"
        return [int(t.split()[1]) for t in self.run(text) if t.startswith("index")]

    def status(self):
        return self.driver.find_element("id", "status").text

    def wait_for_status(self, start):
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.driver, 20).until(lambda _: self.status().startswith(start))

    def exported(self):
        path = self.folder / "corrections.csv"
        path.unlink(missing_ok=True)
        self.press("e")
        for _ in range(200):
            if path.exists():
                return path
            time.sleep(0.1)
        raise AssertionError("nothing was downloaded")


@pytest.fixture
def page(driver, tmp_path):
    return Page(driver, tmp_path, run=str(tmp_path))


def test_it_shows_the_worst_first_with_their_own_pictures(page):
    np.testing.assert_array_equal(page.indices(), page.found["index"][:48])
    title = page.driver.find_element("tag name", "h1").text
    assert page.driver.title == title == "Some <b>title</b>"
    labels = page.run("[...document.querySelectorAll('.labels')].map(d => d.textContent)")
    assert labels[7] == f"{page.found['given'][7]} → {page.found['suggested'][7]}"
    styles = page.run("[...document.querySelectorAll('.image')].map(d => [d.style.backgroundImage, "
                      "d.style.backgroundPosition])")  # fmt: skip
    assert styles[25][0] == 'url("sheet-0.png")'
    x, y = (float(part[:-1]) for part in styles[25][1].split())
    assert (x, y) == pytest.approx((100 * 5 / 9, 100 * 2 / 9), abs=0.01)
    assert page.driver.get_log("browser") == []


def test_keys_decide_and_the_export_is_what_corrections_reads(page):
    page.press("t", "k", "d", "o")
    page.choose("classes", "owl")
    page.click("dialog button.main")
    page.wait_for_status("4 of 96 decided")  # a dialog's end is told after the click
    after = page.labels.copy()
    take, _, drop, other = page.found["index"][:4]
    after[take] = page.probabilities[take].argmax()
    after[drop], after[other] = -1, 2
    np.testing.assert_array_equal(
        corrections.apply(page.exported(), page.labels, CLASSES), after
    )


@pytest.mark.parametrize(
    ("files", "shown"),
    [(("/p/noisy/a b/1.jpg", "/p/noisy/a b/2.jpg"), ["1.jpg", "2.jpg"]),
     (("/p/noisy/a b/1.jpg", "/p/noisy/a c/1.jpg"), ["a b/1.jpg", "a c/1.jpg"]),
     (("/p/1.jpg", "q/1.jpg"), ["/p/1.jpg", "q/1.jpg"])],
)  # fmt: skip
def test_a_card_leaves_out_the_folder_of_all_files(files, shown, driver, tmp_path):
    found = suspects.find(np.eye(2), [1, 0], ("a", "b"), files)
    review.write(tmp_path, found, np.zeros((2, 8, 8, 1), np.uint8), ("a", "b"))
    driver.get(f"file://{tmp_path}/review/index.html")
    cards = driver.find_elements("css selector", ".file")
    assert sorted(card.text for card in cards) == shown
    assert sorted(card.get_attribute("title") for card in cards) == sorted(files)


def test_undo_takes_back_one_decision_after_another(page):
    first = page.found["suggested"][0]
    page.press("k")
    page.press("\ue012", "t", "d")  # arrow left first
    assert page.decisions()[:2] == [f"→ {first}", "dropped"]
    page.press("u")
    assert page.decisions()[:2] == [f"→ {first}", ""]
    page.press("u")
    assert page.decisions()[:2] == ["kept", ""]
    page.click("#undo")
    assert page.decisions()[:2] == ["", ""]
    assert not page.driver.find_element("id", "undo").is_enabled()


def test_a_click_on_a_card_that_is_not_the_current_one_decides_it(page):
    page.click("li:nth-child(6) .choices button:nth-child(4)")
    assert page.decisions()[5] == "dropped" and page.decisions().count("") == 47


def test_a_reload_keeps_decisions_and_undo_and_another_run_has_its_own(page, driver, tmp_path):
    page.press("k", "d")
    page.open()
    assert page.decisions()[:3] == ["kept", "dropped", ""]
    page.press("u")
    assert page.decisions()[:3] == ["kept", "", ""]
    other = Page(driver, tmp_path / "other", run="other")
    assert set(other.decisions()) == {""}


def test_filters(page):
    found = page.found
    page.choose("given", "cat")
    page.choose("suggested", "owl")
    pair = (found["given"] == "cat") & (found["suggested"] == "owl")
    np.testing.assert_array_equal(page.indices(), found["index"][pair][:48])
    page.choose("given", "all")
    page.choose("suggested", "other than given")
    least = page.driver.find_element("id", "least")
    least.clear()
    least.send_keys("0.75")
    sure = (found["given"] != found["suggested"]) & (found["suggested_probability"] >= 0.75)
    np.testing.assert_array_equal(page.indices(), found["index"][sure][:48])
    page.click("li")
    page.press("k")
    page.choose("decided", "not yet")
    np.testing.assert_array_equal(page.indices(), found["index"][sure][1:49])
    page.choose("decided", "decided")
    assert page.indices() == [found["index"][sure][0]]


def test_keys_in_a_field_decide_nothing(page):
    page.driver.find_element("id", "given").send_keys("d")
    page.driver.find_element("id", "least").send_keys("k")
    assert page.status().startswith("0 of 96")


def test_100_000_suspects_keep_the_page_small(driver, tmp_path):
    page = Page(driver, tmp_path, 125_000)
    assert len(page.found) == 100_000 and page.status().startswith("0 of 100,000")
    nodes = page.run("document.querySelectorAll('*').length")
    page.press("n", "n", "k", "p", "n")
    assert nodes < 1000 and page.run("document.querySelectorAll('*').length") <= nodes
    np.testing.assert_array_equal(page.indices(), page.found["index"][96:144])
    assert page.decisions()[0] == "kept"
    sheets = sorted(path.name for path in (tmp_path / "review").glob("sheet-*.png"))
    assert len(sheets) == review.MOST_THUMBNAILS // 100
    page.press(*("n" * 40))
    assert page.run("document.querySelectorAll('.none').length") == 48  # beyond the thumbnails


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 800, 390])
def test_nothing_is_wider_than_the_screen_and_text_has_contrast(page, width, scheme):
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
        "width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False,
    })  # fmt: skip
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {
        "features": [{"name": "prefers-color-scheme", "value": scheme}],
    })  # fmt: skip
    page.press("k", "t", "d")
    assert page.run("document.documentElement.scrollWidth <= innerWidth")
    colors = page.run(
        "['.labels', '.numbers', '.keep', '.relabel', '.drop', '#status', '#export'].map(s => {"
        "  let e = document.querySelector(s), text = getComputedStyle(e).color, back;"
        "  do { back = getComputedStyle(e).backgroundColor; e = e.parentElement; }"
        "  while (back === 'rgba(0, 0, 0, 0)'); return [s, text, back]; })"
    )
    for selector, *pair in colors:
        low, high = sorted(map(luminance, pair))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (selector, pair)  # WCAG 2 AA


def luminance(color):
    """Relative luminance, as WCAG 2 defines it, of a CSS color `rgb(...)`."""
    values = np.array([int(v) for v in color.split("(")[1].rstrip(")").split(",")[:3]]) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def test_a_sheet_has_the_images_in_their_order(tmp_path):
    probabilities, labels, images = case(150)
    found = suspects.find(probabilities, labels, CLASSES)
    review.write(tmp_path, found, images, CLASSES)
    sheet = tf.io.decode_png((tmp_path / "review" / "sheet-1.png").read_bytes()).numpy()
    assert sheet.shape == (80, 80, 1)
    np.testing.assert_array_equal(sheet[8:16, 24:32], images[found["index"][113]])
    assert not sheet[16:].any()  # 120 suspects


def test_large_images_are_scaled_with_bars_and_floats_to_their_range():
    images = np.full((2, 448, 224, 3), 200, np.uint8)
    made = review.thumbnails_of(images, np.array([1]))
    assert made.shape == (1, 112, 112, 3) and made.dtype == np.uint8
    assert (made[0, :, 30:82] == 200).all() and not made[0, :, :27].any()
    floats = np.linspace(-1, 1, 64, dtype=np.float32).reshape(1, 8, 8, 1)
    made = review.thumbnails_of(floats, np.array([0]))
    assert (made[0, 0, 0], made[0, -1, -1]) == (0, 255)
    assert (np.diff(made.ravel().astype(int)) > 0).all()


def test_image_files_give_thumbnails_and_names(tmp_path):
    paths = [tmp_path / f"{n}.png" for n in range(2)]
    for n, path in enumerate(paths):
        path.write_bytes(tf.io.encode_png(np.full((9, 9, 3), 100 * n, np.uint8)).numpy())
    files = ImageFiles(paths, size=(8, 8))
    found = suspects.find(np.eye(2), [1, 0], ("a", "b"), files.paths)
    review.write(tmp_path / "out", found, files, ("a", "b"))
    assert (review.thumbnails_of(files, np.array([1])) == 100).all()
    assert str(paths[1]) in (tmp_path / "out" / "review" / "data.js").read_text()


def test_the_classes_of_the_page_are_those_of_the_suspects(tmp_path):
    probabilities, labels, images = case(50)
    found = suspects.find(probabilities, labels, CLASSES)
    with pytest.raises(ArgumentError, match="class_names: expected one of cat"):
        review.write(tmp_path, found, images, ("cat", "owl"))
