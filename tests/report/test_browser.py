"""The report in a browser: it loads alone, says no error, sorts, filters, turns dark, and fits a phone."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from tests.report.pages import HOSTILE
from tests.report.test_page import named, page_of

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="chromium and chromedriver are not installed")


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for switch in ("--headless=new", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(switch)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # chromium refuses to run as root with one
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield found
    found.quit()


@pytest.fixture(scope="module")
def report(make_sweep, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page_of(make_sweep()), encoding="utf-8")
    return path


def show(browser, path, width=1280, scheme="light"):
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    for log in ("browser", "performance"):
        browser.get_log(log)  # what was before
    browser.get(path.as_uri())


def requests(browser):
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]


def column(browser, title):
    """The texts of a column, in the order that is shown, and the button that sorts by it."""
    heads = browser.find_elements("css selector", "#table thead th")
    place = [head.text.strip(" ↕↑↓") for head in heads].index(title)
    rows = [row for row in browser.find_elements("css selector", "#table tbody tr") if row.is_displayed()]
    texts = [row.find_elements("css selector", "th, td")[place].text for row in rows]
    return texts, heads[place]


def test_it_loads_alone_and_without_error(browser, report):
    show(browser, report)
    assert browser.get_log("browser") == []
    assert [url for url in requests(browser) if not url.startswith("data:")] == [report.as_uri()]
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0


def test_hostile_names_run_nothing(browser, make_sweep, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(page_of(named(make_sweep, HOSTILE)), encoding="utf-8")
    show(browser, path)
    assert browser.execute_script("return window.__hacked") is None
    assert browser.get_log("browser") == []
    assert [url for url in requests(browser) if not url.startswith("data:")] == [path.as_uri()]
    texts = browser.execute_script("return [...document.querySelectorAll('bdi.name')].map(each => each.textContent)")
    assert set(HOSTILE) <= set(texts)
    assert browser.execute_script("return document.querySelectorAll('script').length") == 2


def test_the_policy_holds(browser, report):
    show(browser, report)
    ran = "const code = document.createElement('script'); code.textContent = 'window.__ran = 1';"
    browser.execute_script(ran + "document.body.append(code)")
    assert browser.execute_script("return window.__ran") is None
    assert "Content Security Policy" in browser.get_log("browser")[0]["message"]


def test_sorting_by_clicks_and_keys(browser, report):
    show(browser, report)
    before, head = column(browser, "a run")
    numbers = [float(text.removesuffix(" s")) for text in before]
    head.find_element("tag name", "button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert [float(text.removesuffix(" s")) for text in column(browser, "a run")[0]] == sorted(numbers, reverse=True)
    head.find_element("tag name", "button").send_keys("\ue007")  # Enter
    assert head.get_attribute("aria-sort") == "ascending"
    assert [float(text.removesuffix(" s")) for text in column(browser, "a run")[0]] == sorted(numbers)
    names, other = column(browser, "freeze_strategy")
    other.find_element("tag name", "button").click()
    assert column(browser, "freeze_strategy")[0] == sorted(names)
    assert head.get_attribute("aria-sort") is None


def test_rows_without_a_value_come_last_both_ways(browser, report):
    show(browser, report)
    _, head = column(browser, "transfer gain")
    for _ in range(2):
        head.find_element("tag name", "button").click()
        assert column(browser, "freeze_strategy")[0][-1] == "from_scratch"


def test_filtering(browser, report):
    show(browser, report)
    field = browser.find_element("id", "filter")
    field.send_keys("FULL")
    assert column(browser, "freeze_strategy")[0] == ["full"]
    assert browser.find_element("id", "count").text == "1 of 6 arms"
    field.clear()
    field.send_keys("no such arm")
    assert column(browser, "freeze_strategy")[0] == []


def test_light_and_dark(browser, report):
    brightness = "return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]"
    show(browser, report, scheme="dark")
    assert browser.execute_script(brightness) < 60
    show(browser, report, scheme="light")
    assert browser.execute_script(brightness) > 200
    browser.find_element("id", "theme").click()
    assert browser.execute_script(brightness) < 60
    browser.find_element("id", "theme").click()
    assert browser.execute_script(brightness) > 200


CONTRAST = """
const light = (text) => {
  const [r, g, b] = text.match(/[\\d.]+/g).map(Number).map((c) => c / 255)
    .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ground = (node) => {
  for (let each = node; each; each = each.parentElement) {
    const colour = getComputedStyle(each).backgroundColor;
    if (!/, 0\\)$/.test(colour)) return colour;
  }
};
const found = {};
for (const node of document.querySelectorAll("p, .quiet, td, th, a, h1, h2, figcaption, dt, dd, .tag, summary, li")) {
  if (!node.textContent.trim()) continue;
  const a = light(getComputedStyle(node).color), b = light(ground(node));
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  const name = `${node.tagName} ${node.className}`;
  found[name] = Math.min(found[name] ?? 99, ratio);
}
return found;
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_stand_out(browser, report, scheme):
    show(browser, report, scheme=scheme)
    assert {
        name: ratio for name, ratio in browser.execute_script(CONTRAST).items() if ratio < 4.5
    } == {}  # WCAG 2.2, AA


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_hangs_over_the_side(browser, make_sweep, report, tmp_path, width):
    hostile = tmp_path / "report.html"
    hostile.write_text(page_of(named(make_sweep, HOSTILE)), encoding="utf-8")
    for path in (report, hostile):
        show(browser, path, width)
        browser.execute_script("document.querySelectorAll('details').forEach(each => { each.open = true; })")
        wide, visible = browser.execute_script(
            "const page = document.documentElement; return [page.scrollWidth, page.clientWidth]"
        )
        assert wide <= visible <= width


def test_what_is_used_has_a_name(browser, report):
    show(browser, report)
    used = "button, input, a, svg[role=img], img, [role=region]"
    named_by = "each.getAttribute('aria-label') || each.alt || each.textContent.trim() || each.labels?.length"
    code = f"return [...document.querySelectorAll('{used}')].filter((each) => !({named_by})).length"
    assert browser.execute_script(code) == 0


def test_the_copied_command_is_the_shown_one(browser, report):
    show(browser, report)
    permissions = ["clipboardReadWrite", "clipboardSanitizedWrite"]
    browser.execute_cdp_cmd("Browser.grantPermissions", {"permissions": permissions})
    button = browser.find_element("css selector", "button.copy")
    browser.execute_script("arguments[0].scrollIntoView({behavior: 'instant', block: 'center'})", button)
    button.click()
    shown = browser.find_element("css selector", "pre code").get_attribute("textContent")
    copied = browser.execute_async_script(
        "const done = arguments[0]; navigator.clipboard.readText().then(done, (e) => done(`error: ${e}`))"
    )
    assert copied == shown
