"""The server's live page in headless Chromium: what it promises is in the document and on the screen."""

import base64
import io
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from tests.serving import client, make_engine, observation, serving, without_video

COLOURS = np.uint8([[[200, 30, 40], [20, 160, 60]], [[30, 60, 210], [230, 190, 20]]])  # quarters of what is seen
MARKS = ("div", "span", "table", "svg")  # that have an id


class Page(HTMLParser):
    """Text inside every element with an id, and images by theirs."""

    def __init__(self, document: str):
        super().__init__()
        self.text, self.images, self.shapes, self._open = {}, {}, {}, []
        self.feed(document)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        if tag == "img":
            self.images[found["id"]] = found.get("src", "")
        elif tag in MARKS:
            self._open.append(found.get("id"))
        else:
            for name in filter(None, self._open):
                self.shapes.setdefault(name, []).append(tag)

    def handle_endtag(self, tag):
        if tag in MARKS:
            self._open.pop()

    def handle_data(self, data):
        for name in filter(None, self._open):
            self.text[name] = self.text.get(name, "") + data


def browse(url: str, folder, *more: str) -> tuple[str, np.ndarray]:
    """With more of Chromium's options: (document after its scripts have run, screenshot uint8 [H, W, 3]). Virtual time stands still while the page
    waits for the server, so that a slow machine changes nothing."""
    chromium = shutil.which("chromium")
    assert chromium, "this test needs Chromium (Debian: apt-get install chromium), which `make test` installs"
    options = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
               "--window-size=1050,900", "--virtual-time-budget=4000", f"--user-data-dir={folder / 'profile'}")
    done = subprocess.run([chromium, *options, *more, "--dump-dom", f"--screenshot={folder / 'page.png'}", url],
                          capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout, np.array(Image.open(folder / "page.png").convert("RGB"))


def picture(data_url: str) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(base64.b64decode(data_url.partition(",")[2]))))


@pytest.fixture(scope="module")
def seen() -> np.ndarray:
    return COLOURS.repeat(16, 0).repeat(16, 1)


@pytest.fixture(scope="module")
def browsed(tmp_path_factory, seen):
    """(page, screenshot, actions answered last) after two chunks of an episode and one of another."""
    engine = make_engine(tmp_path_factory.mktemp("run"), "pusht", sessions=2, batch_sizes=(1,))
    engine.warm()
    with serving(engine) as (port, _):
        other, policy = client(port), client(port)
        other.infer(observation(1))
        policy.infer(observation(2, session_id="shown"))
        image = {"observation/image": np.stack([seen] * 4)}
        actions = policy.infer(observation(3, frames=4, session_id="shown") | image)["actions"]
        document, screen = browse(f"http://127.0.0.1:{port}/", tmp_path_factory.mktemp("browser"))
        _, dark = browse(f"http://127.0.0.1:{port}/", tmp_path_factory.mktemp("dark"), "--window-size=520,1500",
                         "--blink-settings=preferredColorScheme=0")
    return Page(document), screen, dark, actions


def test_the_document_says_what_was_served(browsed, seen):
    page, _, _, actions = browsed
    # On a very slow machine an idle connection may have been given up meanwhile.
    assert re.fullmatch(r"pusht, step 1; [12] sessions, [12] connections", page.text["what"])
    np.testing.assert_array_equal(picture(page.images["seen"]), seen)
    imagined = picture(page.images["imagined"])
    assert imagined.shape == (32, 32, 3) and imagined.std() > 0
    assert re.fullmatch(r"[1-4] of 4", page.text["frame"])
    assert page.text["names"].split() == ["target_x", "target_y"]
    assert page.shapes["actions"].count("polyline") == 2 and page.shapes["actions"].count("circle") == actions.size
    assert page.shapes["gaps"].count("circle") == 1  # the first chunk of an episode has none
    assert re.fullmatch(r"sessionid:shownblock2 of 2in the queue\d+ msin the model\d+ msgap\d\.\d{3}interventions.+",
                        page.text["facts"])


def test_a_small_dark_screen_shows_it_too(browsed):
    """One column, nothing cut off at the right, light words on a dark page."""
    _, _, screen, _ = browsed
    assert (screen[:, -8:] == screen[0, 0]).all() and screen[0, 0].max() < 60
    assert (screen == np.uint8((0x25, 0x63, 0xEB))).all(-1).sum() > 100
    rows = (screen == COLOURS[0, 0]).all(-1).any(1), (screen == np.uint8((0x25, 0x63, 0xEB))).all(-1).any(1)
    assert np.flatnonzero(rows[0]).max() < np.flatnonzero(rows[1]).min()


def test_the_screen_shows_it(browsed):
    """Quarters of the observation, each enlarged to 128 by 128 pixels, and both dimensions' curves."""
    _, screen, _, _ = browsed

    def area(colour):
        return (screen == np.uint8(colour)).all(-1).sum()

    for colour in COLOURS.reshape(-1, 3):
        assert 0.95 * 128**2 < area(colour) < 1.05 * 128**2
    for colour in ((0x25, 0x63, 0xEB), (0xD9, 0x77, 0x06)):
        assert area(colour) > 100


def test_where_no_video_is_imagined_the_page_leaves_it_out(tmp_path, seen):
    """What is observed, the chunk and the facts are there; the imagined picture and the gap are not."""
    engine = make_engine(tmp_path / "run", "pusht", sessions=1, batch_sizes=(1,))
    with without_video(engine), serving(engine) as (port, _):
        client(port).infer(observation(2) | {"observation/image": seen})
        document, _ = browse(f"http://127.0.0.1:{port}/", tmp_path)
    page = Page(document)
    np.testing.assert_array_equal(picture(page.images["seen"]), seen)
    assert page.shapes["actions"].count("polyline") == 2 and "gap" not in page.text["facts"]
    assert "gaps" not in page.shapes and not page.images["imagined"]
    assert len(re.findall(r'class="[a-z ]*video" hidden="">', document)) == 3
