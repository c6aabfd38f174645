"""How long a reader waits for the report of 200 runs: until it is made, and until a browser shows it.

    python benchmarks/report.py    # about 4 minutes; needs chromium and chromedriver

The runs are real and tiny. The page is opened anew in a headless browser each time; the figures are those that the
browser itself gives (navigation timing, paint timing).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from selenium import webdriver

from measure import Report, Row, arguments, seconds, spread

TL = [sys.executable, "-m", "tl_experiments"]
SWEEP = [
    "backbone=test_resnet", "backbone.preprocessing.image_size=32", "backbone.weights=random", "dataset.shots=1",
    "trainer.max_epochs=1", "trainer.accelerator=cpu", "head=linear,mlp", "freeze_strategy.n=1,2",
    "freeze_strategy=feature_extraction,last_n_blocks,full,from_scratch", "seed=range(20)", "name=many",
]  # fmt: skip
TIMING = """
const page = performance.getEntriesByType("navigation")[0];
const paint = performance.getEntriesByName("first-contentful-paint")[0];
return [page.loadEventEnd / 1000, paint ? paint.startTime / 1000 : null, document.getElementsByTagName("*").length];
"""


def browser() -> webdriver.Chrome:
    """A headless one of a laptop's width."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    for switch in ("--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1280,900"):
        options.add_argument(switch)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))


def opened(page: Path) -> tuple[float, float, int]:
    """Seconds to the load event and to the first paint, and the number of elements, in a fresh browser."""
    driver = browser()
    try:
        driver.get(page.as_uri())
        driver.set_script_timeout(10)
        # two frames later the first paint has been noted
        wait = (
            "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 100)))"
        )
        driver.execute_async_script(wait)
        loaded, painted, elements = driver.execute_script(TIMING)
    finally:
        driver.quit()
    return loaded, painted, elements


def main() -> None:
    """Measure and write."""
    given = arguments(__doc__, repeats=7).parse_args()
    repeats = 3 if given.short else given.repeats
    report = Report("report", given.short)

    def enter(what: str, times: list[float], limit: float | None, remark: str = "") -> None:
        report.details[what] = times
        row = Row(
            bar="r1",
            what=what,
            peer="the clock",
            **spread(times),
            sense="<=",
            target=limit,
            unit="s",
            remark=remark,
        )
        report.add(row)

    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([*TL, "train", "-m", *SWEEP], cwd=folder, check=True, capture_output=True)
        sweep = Path(folder) / "outputs" / "many"
        runs = len(list(sweep.glob("*/record.json")))
        compare: list[Any] = [*TL, "compare", sweep]
        made, again = [], []
        for _ in range(repeats):
            shutil.rmtree(sweep / "comparison")
            made.append(seconds(lambda: subprocess.run(compare, check=True, capture_output=True)))
            again.append(seconds(lambda: subprocess.run(compare, check=True, capture_output=True)))
        page = sweep / "comparison" / "report.html"
        found = [opened(page) for _ in range(repeats)]
        size = page.stat().st_size
    remark = f"{runs} runs, {size / 1e6:.2f} MB, {found[0][2]} elements"
    enter(f"report of {runs} runs, to the load event", [loaded for loaded, _, _ in found], 2.0, remark)
    enter(f"report of {runs} runs, to the first paint", [painted for _, painted, _ in found], 2.0, remark)
    enter(f"tl compare of {runs} runs, the first time", made, None, "every test and the report")
    enter(f"tl compare of {runs} runs again", again, 2.0)
    report.write()


if __name__ == "__main__":
    main()
