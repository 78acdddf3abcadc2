"""nar-demo's page in a browser: Chromium with its driver, as of Debian's chromium and chromium-driver."""

import shutil
import threading
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor

import pytest
from saved import corpus, save

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("selenium")
if not (shutil.which("chromium") and shutil.which("chromedriver")):
    pytest.skip("no chromium and chromedriver", allow_module_level=True)
import uvicorn  # noqa: E402
from selenium import webdriver  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.wait import WebDriverWait  # noqa: E402

from nar_plugins.cli.demo import listening  # noqa: E402
from nar_plugins.demo.server import Model, Server  # noqa: E402
from nar_plugins.hub import from_pretrained  # noqa: E402

FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync --disable-dev-shm-usage --force-prefers-reduced-motion""".split()
SYSTEMS = {
    "AR": ("transformer_tiny", {"beam": 1, "max_len_a": 0, "max_len_b": 8}),
    "Mask-Predict": ("cmlm_tiny", {"iterations": 3}),
    "<b>Blockwise": ("blockwise_tiny", {"beam": 1, "verify_block": 3, "max_len_a": 0, "max_len_b": 8}),
    "CTC": ("nat_tiny", {}),
    "BANG": ("bang_tiny", {"max_len_a": 0, "max_len_b": 8}),
    "DAG": ("dag_tiny", {}),
}
PATIENCE = 60  # seconds


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Namespace:
    """The address of a page with six models, and these."""
    root = tmp_path_factory.mktemp("page")
    data, models = corpus(root / "text", [("w1", "w1")]), []
    for number, (name, (arch, options)) in enumerate(SYSTEMS.items()):
        path = save(root / f"{number}.pt", arch, *["--ctc"] * (name == "CTC"))
        translator = from_pretrained(path, data, cpu=True, retain_iter_history=True, **options)
        models.append(Model(name, translator, options))
    listener, decoding = listening(0), ThreadPoolExecutor(1)
    config = uvicorn.Config(Server(models, decoding).app(), log_level="warning", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    yield Namespace(address=f"http://127.0.0.1:{listener.getsockname()[1]}/", models=models)
    server.should_exit = True
    thread.join(20)
    decoding.shutdown()
    listener.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.binary_location = shutil.which("chromium")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser, served):
    """The page, freshly loaded at a desktop's width."""
    browser.set_window_size(1280, 900)
    browser.get(served.address)
    wait(browser, lambda: len(browser.find_elements(By.CSS_SELECTOR, "#models label")) == len(SYSTEMS))
    browser.get_log("browser")
    yield browser
    assert [entry for entry in browser.get_log("browser") if "status of 4" not in entry["message"]] == []


def wait(browser, condition):
    return WebDriverWait(browser, PATIENCE).until(lambda _: condition())


def one(page, selector: str, inside=None):
    return (inside or page).find_element(By.CSS_SELECTOR, selector)


def every(page, selector: str, inside=None) -> list:
    return (inside or page).find_elements(By.CSS_SELECTOR, selector)


def put(page, text: str) -> None:
    """Put a text into the field, as pasting does."""
    script = "const f = document.getElementById('text'); f.value = arguments[0]; f.dispatchEvent(new Event('input'));"
    page.execute_script(script, text)


def translate(page) -> str:
    """Press the button; what the page says when it is ready."""
    one(page, "#translate").click()
    wait(page, lambda: one(page, "#translate").is_enabled() and one(page, "#status").text)
    return one(page, "#status").text


def test_it_translates_and_shows_every_pass(page, served):
    one(page, "#text").send_keys("w1 w2 w3")
    boxes = every(page, "#models input")
    assert [box.is_selected() for box in boxes] == [True] * 4 + [False] * 2 and not boxes[
        4
    ].is_enabled()  # at most four
    one(page, "#text").send_keys(Keys.ENTER)  # without a mouse
    wait(page, lambda: one(page, "#status").text == "Done.")
    panels = every(page, ".panel")
    assert [one(page, "h2", panel).text for panel in panels] == [*SYSTEMS][:4]
    for panel, model in zip(panels, served.models):
        (wanted,) = model.translator.translate(["w1 w2 w3"])
        assert one(page, ".output", panel).text == wanted.text
        assert one(page, ".figures dd", panel).text == str(wanted.passes)
        slider = one(page, "input[type=range]", panel)
        assert slider.get_attribute("value") == slider.get_attribute("max")  # reduced motion: nothing plays
        seen = []
        slider.send_keys(Keys.HOME)
        for _ in range(int(slider.get_attribute("max")) + 1):
            cells = tuple(cell.get_attribute("class") for cell in every(page, ".cells .cell", panel))
            seen.append((one(page, ".label", panel).text, cells))
            assert slider.get_attribute("aria-valuetext") == seen[-1][0]
            slider.send_keys(Keys.ARROW_RIGHT)
        numbers = [int(label.split()[1]) for label, _ in seen]
        assert numbers == sorted(numbers) and {*numbers} == {*range(1, wanted.passes + 1)}
    mask_predict = panels[1]
    slider = one(page, "input[type=range]", mask_predict)
    slider.send_keys(Keys.HOME)
    assert {cell.text.split("\n")[0].strip() for cell in every(page, ".cells .cell", mask_predict)} == {"?"}


@pytest.mark.parametrize("width", [390, 1280])
def test_the_links_of_a_graph_are_drawn_between_its_vertices(page, served, width):
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    )
    for box in every(page, "#models input")[:4]:
        box.click()
    every(page, "#models input")[5].click()
    put(page, "w1 w2 w3 w4 w5")
    assert translate(page) == "Done."
    (panel,) = every(page, ".panel")
    slider = one(page, "input[type=range]", panel)
    drawn = []
    slider.send_keys(Keys.HOME)
    for _ in range(int(slider.get_attribute("max")) + 1):
        drawn.append([path.get_attribute("class") for path in every(page, ".arcs path", panel)])
        slider.send_keys(Keys.ARROW_RIGHT)
    assert not drawn[0] and drawn[1] and "chosen" not in drawn[1] and drawn[2].count("chosen") >= 1 and not drawn[-1]
    slider.send_keys(Keys.HOME, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    on = every(page, ".cells .path", panel)
    assert len(on) == drawn[2].count("chosen")
    box = one(page, ".graph", panel).rect
    for path in every(page, ".arcs path", panel):
        assert box["x"] - 2 <= path.rect["x"] and path.rect["x"] + path.rect["width"] <= box["x"] + box["width"] + 2
        assert box["y"] - 2 <= path.rect["y"] and path.rect["y"] + path.rect["height"] <= box["y"] + box["height"] + 2
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_playing_moves_every_panel_and_stops_at_the_end(page):
    put(page, "w1 w2 w3 w4")
    translate(page)
    page.execute_script(
        "const p = document.getElementById('pace'); p.options[0].value = '0.5'; p.selectedIndex = 0;"
        "p.dispatchEvent(new Event('change'));"
    )
    sliders = every(page, ".panel input[type=range]")
    for slider in sliders:
        slider.send_keys(Keys.HOME)
    one(page, "#play").click()
    wait(page, lambda: one(page, "#play").text == "Play")
    assert all(slider.get_attribute("value") == slider.get_attribute("max") for slider in sliders)
    assert "of the models' time" in one(page, "#scale").text


def test_what_is_wrong_is_said_and_nothing_is_lost(page):
    assert translate(page) == "Type a sentence first."
    put(page, "w " * 5000)
    assert "10,000 of 1,000" in one(page, "#count").text
    assert translate(page) == "The text has 10,000 characters, the limit is 1,000: give one sentence."
    assert len(one(page, "#text").get_attribute("value")) == 10_000
    put(page, "w1")
    for box in every(page, "#models input"):
        if box.is_selected():
            box.click()
    assert translate(page) == "Choose a model."
    every(page, "#models input")[3].click()
    assert translate(page) == "Done." and len(every(page, ".panel")) == 1


@pytest.mark.parametrize("text", ["<img src=x onerror=alert(1)><b>w1</b>", "שלום w1 עולם", "w1 🜁 ﷽\n\t"])
def test_html_and_any_script_are_text(page, served, text):
    put(page, text)
    assert translate(page) == "Done."
    for panel, model in zip(every(page, ".panel"), served.models):
        assert one(page, ".output", panel).text == model.translator.translate([text])[0].text
    assert not every(page, "#panels img, #panels b, #models b")
    assert page.execute_script("return document.querySelector('.panel:nth-child(3) h2').textContent") == "<b>Blockwise"


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen_and_every_control_has_a_name(page, width):
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    )
    put(page, "w1 w2 w3 " + "w" * 100)
    translate(page)
    seen, room = page.execute_script("const e = document.documentElement; return [e.scrollWidth, e.clientWidth]")
    assert seen == room <= width  # less a scroll bar
    columns = {panel.rect["x"] for panel in every(page, ".panel")}
    assert len(columns) == (1 if width < 900 else 2)
    for control in every(page, "input, textarea, select, button"):
        assert control.accessible_name, control.get_attribute("outerHTML")
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
