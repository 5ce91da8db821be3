"""Reports in a real browser: sorting, filters, the item explorer, hostile content, colour schemes, phone width."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alignkit_eval.comparison.compare import compare
from alignkit_eval.report import comparison_report, run_report

from tests.helpers.runs import short_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER),
    reason="no chromium with chromedriver here (Debian: apt install chromium chromium-driver)",
)

EVIL = '</script><script>window.evil = 1</script><img src=x onerror="window.evil = 2"> plainly-evil'


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A report with hostile answers and a hostile category."""
    eval_ = {"samples": 3, "sample_tokens": 8, "settings": {"perplexity": {"text": None}}}
    train = {"max_steps": 20, "save_strategy": "no"}
    run = short_run(tmp_path_factory.mktemp("runs"), "orpo", train=train, eval=eval_).directory
    rows = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    rows[0]["after"] = rows[0]["prompt"] = EVIL
    (run / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    items = run / "eval/prefs.items.jsonl"
    changed = [json.loads(line) | {"category": EVIL} for line in items.read_text().splitlines()]
    items.write_text("".join(json.dumps(item) + "\n" for item in changed))
    return run_report(run).as_uri()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    quiet = ("quic", "gpu", "background-networking", "component-update", "sync", "default-apps", "dev-shm-usage")
    for flag in ("headless=new", "no-sandbox", "no-first-run", *(f"disable-{name}" for name in quiet)):
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser: Any, page: str) -> Any:
    browser.get(page)
    browser.execute_script("for (const fold of document.querySelectorAll('.fold')) fold.open = true")
    return browser


def find(driver: Any, selector: str) -> list[Any]:
    return list(driver.find_elements("css selector", selector))


def test_nothing_foreign_runs_and_nothing_is_fetched(opened: Any, page: str) -> None:
    assert opened.execute_script("return window.evil") is None
    assert [entry for entry in opened.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    messages = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
    sent = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    asked = [
        about["request"]["url"] for about in sent if about["documentURL"] == page
    ]  # the browser's own pages ask too
    assert [url for url in asked if not url.startswith("data:")] == [page]
    assert all(opened.execute_script("return [...document.images].map((i) => i.complete && i.naturalWidth > 0)"))
    shown = next(text for text in (e.text for e in find(opened, ".generation")) if "plainly-evil" in text)
    assert "<script>window.evil = 1</script>" in shown


def test_a_table_sorts_both_ways_and_back(opened: Any) -> None:
    table = find(opened, "table.sortable")[0]

    def column() -> list[str]:
        return [
            row.find_elements("css selector", "th, td")[2].text
            for row in table.find_elements("css selector", "tbody tr")
        ]

    def numbers(cells: list[str]) -> list[float]:
        return [float(cell.split()[0].replace(",", "")) for cell in cells if cell != "-"]

    before = column()
    head = table.find_elements("css selector", "thead th")[2]
    button = head.find_element("css selector", "button")
    button.send_keys("\ue007")  # Enter: the keyboard sorts as well
    assert head.get_attribute("aria-sort") == "ascending"
    assert numbers(column()) == sorted(numbers(before))
    button.click()
    assert head.get_attribute("aria-sort") == "descending"
    assert numbers(column()) == sorted(numbers(before), reverse=True)
    button.click()
    assert column() == before


def test_filters_and_the_item_explorer(opened: Any) -> None:
    generations = find(opened, ".generation")
    section = generations[0].find_element("xpath", "..")
    assert section.find_element("css selector", "output").text == f"{len(generations)} shown"
    section.find_element("css selector", "input").send_keys("plainly-evil")
    assert [g.is_displayed() for g in generations] == [
        "plainly-evil" in g.get_attribute("textContent") for g in generations
    ]
    assert section.find_element("css selector", "output").text == f"1 of {len(generations)}"
    item = find(opened, "details.item")[0]
    assert not item.find_element("css selector", "dl").is_displayed()
    item.find_element("css selector", "summary").click()
    assert item.find_element("css selector", "dl").is_displayed()
    assert "chosen" in item.text


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_and_phone_width(opened: Any, scheme: str) -> None:
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    phone = {"width": 390, "height": 800, "deviceScaleFactor": 2, "mobile": True}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    ground, ink = opened.execute_script(
        "const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]"
        ".map((c) => c.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + Number(b), 0))"
    )
    assert (ground > ink) == (scheme == "light")
    assert abs(ground - ink) > 400
    assert opened.execute_script("return document.documentElement.scrollWidth") <= 390
    cut = "return [...document.querySelectorAll('.sortable :is(th, td)')].filter((c) => c.getBoundingClientRect().right > 390).length"
    assert opened.execute_script(cut) == 0, "no column lies outside the screen"
    opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_sortable_columns_look_it(opened: Any) -> None:
    marks = (
        "return [...document.querySelectorAll('thead th button')].map((b) => getComputedStyle(b, '::after').content)"
    )
    assert set(opened.execute_script(marks)) == {'" \u2195"'}
    find(opened, "thead th button")[0].click()
    assert '" \u2191"' in opened.execute_script(marks)


def test_a_page_of_twelve_arms_is_a_few_screens_tall(browser: Any, page: str, tmp_path: Path) -> None:
    source = Path(page.removeprefix("file://")).parent
    for number in range(12):
        copied = shutil.copytree(source, tmp_path / f"arm-{number}")
        record = json.loads((copied / "run.json").read_text())
        record["config"]["method"]["lambda"] = number / 10
        (copied / "run.json").write_text(json.dumps(record))
    address = comparison_report(compare(sorted(tmp_path.glob("arm-*"))), tmp_path / "arms.html").as_uri()
    desktop = {"width": 1280, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", desktop)
    height = "return document.documentElement.scrollHeight"
    for opened in (page, address):
        browser.get(opened)
        assert browser.execute_script(height) <= 4000
    folded = find(browser, "details.fold:not([open])")
    assert folded
    assert find(browser, "details.fold[open]")[0].text.startswith("Paired differences")
    last = folded[-1].find_element("xpath", "..").get_attribute("id")
    find(browser, f"nav a[href='#{last}']")[0].click()
    assert find(browser, f"#{last} .fold[open]"), "a link to a folded section unfolds it"
    browser.execute_script("for (const fold of document.querySelectorAll('.fold')) fold.open = true")
    assert browser.execute_script(height) > 4000, "unfolded it is longer"
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_rating_page_takes_ratings(browser: Any, tmp_path: Path) -> None:
    from alignkit_eval.rating import write_rating_page

    first, second = (
        [{"id": f"p{i}", "cluster": f"c{i}", "prompt": f"ask {i}", "answer": f"{who} {i} {EVIL}"} for i in range(4)]
        for who in ("one", "two")
    )
    address = write_rating_page(first, second, ("one", "two"), tmp_path).as_uri()
    browser.get(address)

    def shown() -> list[bool]:
        return [pair.is_displayed() for pair in find(browser, ".pair")]

    assert shown() == [True, False, False, False]
    find(browser, ".pair button[value=b]")[0].click()
    find(browser, "body")[0].send_keys("0")
    assert shown() == [False, False, True, False]
    find(browser, "body")[0].send_keys("\ue012")  # the left arrow: one pair back
    assert shown() == [False, True, False, False]
    find(browser, "body")[0].send_keys("1")
    assert find(browser, "#progress")[0].text == "2 of 4 rated"
    made = find(browser, "body")[0].get_attribute("data-page")
    assert browser.execute_script("return csv()") == f"pair,choice,page\n1,b,{made}\n2,a,{made}\n"
    browser.get(address)
    assert find(browser, "#progress")[0].text == "2 of 4 rated", "kept over a reload"
    assert browser.execute_script("return window.evil") is None
