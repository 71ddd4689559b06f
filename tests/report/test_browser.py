"""The page in a real browser: Chromium, headless, driven by selenium. Without either of them these tests are skipped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from speedlit.report.page import page
from tests.report.making import make_many, make_run, make_summary

EVIL = '</script><script>window.hacked = 1</script><img src="http://example.org/x.png" onerror="window.hacked = 1"><b>bold</b>'
BROWSER, DRIVER = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")


@pytest.fixture(scope="module")
def chrome() -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    if not BROWSER or not DRIVER:
        pytest.skip("needs chromium and chromedriver (Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1280,900"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("small")
    folders = make_run(root, said=f"whale {EVIL}", task=f"find {EVIL}", topic=f"Science/{EVIL}", reason=f"because {EVIL}")
    return written(root, page(f"run {EVIL}", make_summary(), folders, root))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("large")
    return written(root, page("large", make_summary(), make_many(root, 50_000), root, records=60_000))


def written(root: Path, text: str) -> Path:
    (root / "report.html").write_text(text, encoding="utf-8")
    return root / "report.html"


def opened(chrome: Any, path: Path, after: str = "") -> None:
    """Load the page anew and wait until its records are unpacked."""
    chrome.get("about:blank")
    chrome.get_log("browser"), chrome.get_log("performance")
    chrome.get(path.as_uri() + after)
    until(chrome, lambda: " of " in count(chrome))


def until(chrome: Any, holds: Any) -> None:
    from selenium.common.exceptions import StaleElementReferenceException
    from selenium.webdriver.support.ui import WebDriverWait

    # a row may be replaced between being found and being read
    WebDriverWait(chrome, 60, 0.05, [StaleElementReferenceException]).until(lambda _: holds())


def one(chrome: Any, selector: str) -> Any:
    return chrome.find_element("css selector", selector)


def count(chrome: Any) -> str:
    return str(one(chrome, "#records .tally").text)


def focused(chrome: Any) -> str:
    return str(chrome.execute_script("return document.activeElement.className"))


def test_hostile_text_is_text_and_nothing_is_asked_of_the_network(chrome: Any, small: Path) -> None:
    opened(chrome, small)
    assert count(chrome) == "5 of 5 records"
    for _ in chrome.find_elements("css selector", "#records .row"):
        one(chrome, "#records .list").send_keys("\ue015")  # arrow down
        lineage = one(chrome, "#records .lineage").text
        assert lineage.count(EVIL) >= 3, "topic, task and prompt at least show it letter by letter"
    assert one(chrome, "h1").text == f"run {EVIL}"
    assert chrome.execute_script("return window.hacked") is None
    assert chrome.execute_script("return document.querySelectorAll('main img, main b, .lineage script').length") == 0
    messages = [json.loads(entry["message"])["message"] for entry in chrome.get_log("performance")]
    asked = [message["params"]["request"]["url"] for message in messages if message["method"] == "Network.requestWillBeSent"]
    assert asked and all(url.startswith(("file:", "about:")) for url in asked), asked
    assert chrome.get_log("browser") == [], "no error and no warning in the console"


def test_filters_and_search_narrow_the_list_and_clear_widens_it(chrome: Any, small: Path) -> None:
    opened(chrome, small)
    choices = {option.get_attribute("value") for option in chrome.find_elements("css selector", "[data-filter=fate] option")}
    assert choices == {"", "judged best", "judged between", "judged worst", "no record: not_json", "in the data set"}
    one(chrome, "[data-filter=fate] option[value='judged best']").click()
    assert count(chrome) == "1 of 5 records" and "judged best | rank 1" in one(chrome, "#records .row").text
    one(chrome, "#records input").send_keys("no such words")
    until(chrome, lambda: count(chrome) == "0 of 5 records")
    one(chrome, "#records button[type=reset]").click()
    until(chrome, lambda: count(chrome) == "5 of 5 records")
    one(chrome, "#records input").send_keys("HARBOUR new")
    until(chrome, lambda: count(chrome) == "1 of 5 records")
    assert "senior, then revisor | in the data set" in one(chrome, "#records .row").text, "found by a word that only the revision has"


def test_a_lineage_opens_with_ranks_and_the_revision_as_a_difference(chrome: Any, small: Path) -> None:
    opened(chrome, small)
    one(chrome, "[data-filter=fate] option[value='judged worst']").click()
    one(chrome, "#records .row").click()
    titles = [title.text.split("\n")[0] for title in chrome.find_elements("css selector", ".lineage h4")]
    assert titles == ["Topic", "Task", "Prompt", "Answers to this prompt by the same writer: 4", "Record, written by junior's candidates", "Outcome"]
    ranks = [rank.text for rank in chrome.find_elements("css selector", ".candidates .rank")]
    assert ranks == ["1.", "2.", "3.", "-"] and "worst, score 1.5" in one(chrome, ".candidates [aria-current]").text
    chrome.find_elements("css selector", ".candidates button")[0].click()
    assert "best, score 9" in one(chrome, ".candidates [aria-current]").text, "another candidate is one click away"
    one(chrome, "#records button[type=reset]").click()
    one(chrome, "[data-filter=revision] option[value='revised']").click()
    one(chrome, "#records .row").click()
    assert [(part.tag_name, part.text) for part in chrome.find_elements("css selector", ".lineage del, .lineage ins")] == [("del", "old"), ("ins", "new")]
    address = chrome.execute_script("return location.hash")
    opened(chrome, small, address)
    assert f"Record {address.removeprefix('#record=')}" in one(chrome, ".lineage").text, "the address leads back to the record"


def test_everything_is_reached_by_keyboard(chrome: Any, small: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    opened(chrome, small)
    one(chrome, "body").send_keys(Keys.TAB)
    assert focused(chrome) == "skip" and one(chrome, ".skip").rect["x"] >= 0, "the first stop is the way past the contents, and is seen"
    seen = []
    for _ in range(60):
        chrome.switch_to.active_element.send_keys(Keys.TAB)
        seen.append(chrome.execute_script("const a = document.activeElement; return a.tagName + '.' + a.className"))
        if focused(chrome) == "list":
            break
    assert {"A.", "SUMMARY.", "DIV.frame", "INPUT.", "SELECT.", "BUTTON.", "DIV.list"} <= set(seen)
    assert chrome.execute_script("return getComputedStyle(document.activeElement).outlineStyle") == "solid", "the focus is seen"
    listed = one(chrome, "#records .list")
    listed.send_keys(Keys.END)
    assert listed.get_attribute("aria-activedescendant") == "row-4" and one(chrome, "#row-4").get_attribute("aria-selected") == "true"
    listed.send_keys(Keys.HOME, Keys.ENTER)
    assert focused(chrome) == "lineage" and listed.get_attribute("aria-activedescendant") == "row-0"
    one(chrome, ".lineage").send_keys(Keys.ESCAPE)
    assert focused(chrome) == "list"


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen(chrome: Any, small: Path, width: int) -> None:
    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500})
    try:
        opened(chrome, small)
        assert chrome.execute_script("return document.documentElement.scrollWidth") <= width
        shown = [svg.get_attribute("class") for svg in chrome.find_elements("css selector", ".loop svg") if svg.is_displayed()]
        assert shown == ["narrow" if width < 500 else "wide"]
    finally:
        chrome.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_dark_and_print_have_colours_and_parts_of_their_own(chrome: Any, small: Path) -> None:
    opened(chrome, small)
    papers = []
    for feature in ("light", "dark"):
        chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": feature}]})
        papers.append(chrome.execute_script("return getComputedStyle(document.body).backgroundColor"))
    assert papers[0] != papers[1]
    chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": []})
    assert not one(chrome, "#records .list").is_displayed()
    assert {part.is_displayed() for part in chrome.find_elements("css selector", ".loop svg.wide, .loop svg.wide text")} == {True}
    chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
    chrome.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert all(part.get_attribute("open") for part in chrome.find_elements("css selector", "details")), "what is folded is printed"


def test_a_page_without_records_unfolds_for_print_too(chrome: Any, tmp_path: Path) -> None:
    chrome.get(written(tmp_path, page("bare", make_summary())).as_uri())
    chrome.execute_script("dispatchEvent(new Event('beforeprint'))")
    folded = chrome.find_elements("css selector", "details")
    assert folded and all(part.get_attribute("open") for part in folded) and not chrome.find_elements("id", "records")


def test_fifty_thousand_records_keep_few_rows_in_the_page(chrome: Any, large: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    opened(chrome, large)
    assert count(chrome) == "50,000 of 50,000 records"
    assert 0 < len(chrome.find_elements("css selector", "#records .row")) < 60
    one(chrome, "#records .list").send_keys(Keys.END)
    until(chrome, lambda: chrome.find_elements("css selector", "#row-49999"))
    assert len(chrome.find_elements("css selector", "#records .row")) < 60
    one(chrome, "#records input").send_keys('"number 1234" "other 1234 3"')
    until(chrome, lambda: count(chrome) != "50,000 of 50,000 records")
    assert count(chrome) == "1 of 50,000 records"
    until(chrome, lambda: "answer 1234 3" in one(chrome, "#records .row").text)
    one(chrome, "#records input").clear()
    one(chrome, "#records input").send_keys(f"{49_999:016x}")
    until(chrome, lambda: "answer 9999 4" in one(chrome, "#records .row").text)
    assert count(chrome) == "1 of 50,000 records", "found by its id"
    assert chrome.find_elements("css selector", "script.part") == [], "the packed data leave the page when they are unpacked"
