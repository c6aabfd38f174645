"""The report as text: what is in it, what it may load, and names that would like to be markup."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re

import pytest
from PIL import Image

from tests.report.pages import HARMLESS, HOSTILE, Page
from tl_experiments.analysis import evidence
from tl_experiments.report import stamp
from tl_experiments.report.page import PICTURE_BYTES, render
from tl_experiments.report.table import columns


def no_pictures(run, items):
    return {}


def page_of(folder, pictures=no_pictures):
    return render(evidence(folder), pictures)


@pytest.fixture(scope="module")
def sweep(make_sweep):
    lost = {
        "id": "lost1",
        "overrides": ["seed=7"],
        "state": "diverged",
        "cause": "loss is NaN",
        "log": "logs/l.log",
    }
    cost = {"jobs": 18, "predicted_s": 61.5, "actual_s": 70.25, "predicted_decoded": 1234, "actual_decoded": 1235,
            "predicted_encoded": 0, "actual_encoded": 9876}  # fmt: skip
    return make_sweep(tests=("test/sketch",), lost=[{**lost, "seconds": 3.0}], costs=[cost])


@pytest.fixture(scope="module")
def page(sweep):
    return Page(page_of(sweep))


def named(make_sweep, names):
    """A sweep in which everything that can have a name has one of ``names``."""
    lost = {"id": "x", "overrides": [names[0]], "state": "failed", "cause": names[8], "log": names[4], "seconds": 1.0}
    return make_sweep(
        dataset=names[0], classes=names, arms=(names[7], names[8], "from_scratch"), backbones=(names[3], names[5]),
        item=lambda split, number: f"{split}/{number}/{names[number % len(names)]}", notes=names, lost=[lost],
        tests=(f"test/{names[9]}",),
    )  # fmt: skip


@pytest.fixture(scope="module")
def hostile(make_sweep):
    return page_of(named(make_sweep, HOSTILE))


def test_every_number_of_the_table_is_that_of_the_comparison(sweep, page):
    rows = evidence(sweep).comparison.rows
    shown = columns(rows)
    found = [cells for cells in page.cells if cells]
    assert len(found) == len(rows)
    for row, cells in zip(rows, found, strict=True):
        assert [text.split("\n")[0] for text, _ in cells][1:] == [column.cell(row) for column in shown][1:]
        by_title = dict(zip([column.title for column in shown], (sort for _, sort in cells), strict=True))
        assert float(by_title["test accuracy"]) == row.test_accuracy.mean
        assert float(by_title["val accuracy"]) == row.val_accuracy
        assert float(by_title["NLL"]) == row.test_nll
        assert float(by_title["a run"]) == row.wall_clock_s
        assert float(by_title["memory"]) == row.peak_memory_bytes
        assert by_title["transfer gain"] == ("" if row.transfer_gain is None else repr(row.transfer_gain.mean))


def test_the_comparison_is_in_it_for_programs(sweep, page):
    (script,) = [text for text in page.texts["script"] if text.startswith("{")]
    whole = json.loads(evidence(sweep).comparison.to_json())
    # The contrasts have a file of their own; the digest is of the file that has them
    assert json.loads(script) == {key: value for key, value in whole.items() if key not in ("contrasts", "sha256")}


def test_everything_promised_is_in_it(sweep, page):
    comparison = evidence(sweep).comparison
    assert all(verdict.sentence in page.names for verdict in comparison.verdicts)
    assert all(warning in page.names for warning in comparison.warnings)
    headings = [text.strip() for tag in ("h2", "h3", "h4", "caption") for text in page.texts[tag]]
    for wanted in (
        *("Arms", "Test accuracy", "Gain over training from scratch", "Confusion matrix", "Calibration"),
        *("Learning curves against epochs", "Learning curves against seconds", "Accuracy against seconds a run"),
        *("Accuracy against trained parameters", "Accuracy against peak memory, GiB", "Most confused"),
        *("Worst predictions", "Environment", "Reproduce", "Cost", "Predicted before a command ran, and actual"),
        *("Statistics behind the verdict", "Jobs that are in no mean", "By class, 3 runs together"),
    ):
        assert wanted in headings, wanted
    assert {"61.5 s", "70.2 s", "1,234", "9,876", "loss is NaN", "logs/l.log", "2.15.0"} <= set(page.names)
    assert "tl train -m backbone=resnet10t freeze_strategy=full seed=0,1,2" in page.texts["code"]


def test_nothing_comes_from_outside(sweep, hostile):
    for text in (page_of(sweep), hostile):
        page = Page(text)
        assert all(link.startswith(("#", "data:")) for link in page.links)
        styles, scripts = page.texts["style"], page.texts["script"]
        assert not re.search(r"url\(|@import|https?:|//[a-z]", "".join(styles) + scripts[-1])
        policy = page.metas["Content-Security-Policy"]
        digests = [base64.b64encode(hashlib.sha256(code.encode()).digest()).decode() for code in (*styles, scripts[-1])]
        assert policy == (
            f"default-src 'none'; img-src data:; style-src 'sha256-{digests[0]}'; script-src 'sha256-{digests[1]}'; "
            "base-uri 'none'; form-action 'none'"
        )
        # the policy forbids them, so they would do nothing
        assert not any(name == "style" or name.startswith("on") for _, names in page.tags for name in names)


def test_names_bring_no_markup(make_sweep, hostile):
    harmless = Page(page_of(named(make_sweep, HARMLESS)))
    assert Page(hostile).tags == harmless.tags


def test_names_are_exact(hostile):
    page = Page(hostile)
    assert set(HOSTILE) <= set(page.names)  # the classes, and the notes


def test_names_in_the_block_for_programs_cannot_end_it(hostile):
    assert hostile.count("</script>") == 2
    (script,) = [text for text in Page(hostile).texts["script"] if text.startswith("{")]
    assert json.loads(script)["rows"][0]["arm"]["dataset"] == HOSTILE[0]


def jpeg(colour, size=(60, 40)):
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, "JPEG")
    return stream.getvalue()


def test_worst_predictions_have_their_pictures(sweep):
    asked = []

    def pictures(run, items):
        asked.append((run.record.arm["freeze_strategy"], len(items)))
        return {item: jpeg("red") for item in items[1:]}

    text = page_of(sweep, pictures)
    recommended = evidence(sweep).comparison.verdicts[0].recommended
    (found,) = asked  # of the recommended arm only: they are what makes a page large
    assert found[0] == recommended.freeze_strategy
    uris = re.findall(r'<img src="data:image/jpeg;base64,([^"]+)"[^>]* width="60" height="40"', text)
    assert [base64.b64decode(uri) for uri in uris] == [jpeg("red")] * (found[1] - 1)
    assert text.count("no picture") == 1  # an image that is gone


def test_pictures_have_a_limit(sweep):
    large = jpeg("blue") + b"\0" * (PICTURE_BYTES // 3)
    text = page_of(sweep, lambda run, items: dict.fromkeys(items, large))
    assert text.count("data:image/jpeg") == 2


def test_200_runs_stay_small(make_sweep):
    folder = make_sweep(backbones=[f"net{number}" for number in range(11)], images=30)
    text = page_of(folder)
    page = Page(text)
    assert sum(bool(cells) for cells in page.cells) == 66
    assert len(text) < 1_500_000
    assert text.count("<") / 2 < 20_000  # about the number of elements


def test_the_stamp_says_what_it_was_made_from(sweep, page):
    assert page.metas["comparison"] == stamp(evidence(sweep).comparison)


def test_several_datasets(make_sweep):
    found = evidence(
        *(make_sweep(name=name, dataset=name, backbones=("resnet10t",)) for name in ("one", "two", "three"))
    )
    page = Page(render(found, no_pictures))
    headings = [text.strip() for tag in ("h2", "h4", "caption") for text in page.texts[tag]]
    assert {"one", "two", "three", "All datasets", "Average rank", "Arms that ran on every dataset"} <= set(headings)
    standings = found.comparison.overview.standings
    assert {f"{each.average_rank:.2f}" for each in standings} <= set(page.names)
    assert f"critical difference {found.comparison.overview.critical_difference:.2f}" in "".join(
        page.texts["figcaption"]
    )
    assert headings.count("Confusion matrix") >= 3
    assert page.texts["title"][0] == "one, three, two"  # in the order of the table


def test_the_tests_behind_the_verdict(sweep, page):
    comparison = evidence(sweep).comparison
    best = comparison.verdicts[0].recommended
    for contrast in comparison.contrasts:
        if contrast.first == best:
            assert f"{contrast.effect.hedges_gz:.2f}".replace("-", "\N{MINUS SIGN}") in page.names
            assert f"{contrast.images.only_first} : {contrast.images.only_second}" in page.names


def test_one_run(make_sweep):
    page = Page(page_of(make_sweep(arms=("full",), seeds=(0,))))
    assert "Gain over training from scratch" not in [text.strip() for text in page.texts["h4"]]
    assert any("Verdict: full" in name for name in page.names)


def test_without_predictions_and_curves(make_sweep):
    folder = make_sweep(seeds=(0, 1))
    comparison = evidence(folder)  # written while the predictions stood
    for path in [*folder.glob("*/predictions.parquet"), *folder.glob("*/metrics.jsonl")]:
        path.unlink()
    headings = [text.strip() for text in Page(render(comparison, no_pictures)).texts["h4"]]
    assert "Test accuracy" in headings
    assert not {"Confusion matrix", "Learning curves against epochs"} & set(headings)
