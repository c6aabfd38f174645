"""Tables that are pleasant to read, and names that can do no harm in them."""

import csv
import io

import pytest
from rich.console import Console

from tl_experiments import safe_text
from tl_experiments.analysis import wording
from tl_experiments.analysis.columns import compact_columns, explanation
from tl_experiments.analysis.comparison import compare_records
from tl_experiments.analysis.statistics import Estimate
from tl_experiments.analysis.tables import csv_text, markdown_text, table_csv, table_markdown
from tl_experiments.analysis.terminal import show

ARMS = {
    "feature_extraction": 0.905,
    "last_n_blocks(n=2)": 0.957,
    "full": 0.962,
    "discriminative(decay=0.75)": 0.949,
    "from_scratch": 0.926,
}
NASTY = [
    "../../etc/passwd",
    "<script>alert(1)</script>",
    "=cmd|' /C calc'!A0",
    "+1",
    "-1",
    "@SUM(A1)",
    "\uff1dcmd",
    "[red]name[/red]",
    "\x1b[31mred\x1b[0m\x9b2J",
    "two\nlines\r\n| pipe |",
    "🙂 :smile:",
    "x" * 300,
    "\ud800lone",
    "abc\u202ecba",
    "*bold* _it_ `code` [a](http://b) $x$",
    "\t=1",
]


def printed(comparison, width=100, encoding="utf-8", **options):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    show(comparison, Console(file=stream, width=width, **options))
    stream.flush()
    return raw.getvalue().decode(encoding)


@pytest.fixture(scope="module")
def comparison(make_sweep):
    return compare_records(make_sweep(ARMS, factors=(0.3, 1.0, 3.0)))


def test_five_arms_fit_100_columns(comparison):
    lines = printed(comparison).splitlines()
    assert max(map(len, lines)) <= 100
    for name in ARMS:  # one line an arm: nothing is wrapped
        assert sum(line.startswith(f"{name}  ") for line in lines) == 1
    best = next(line for line in lines if line.startswith("full "))
    assert best.split() == ["full", "3", "0.970", "0.962", "±0.005", "+0.038", "±0.004", "4.9M", "6.8", "s"]


def test_what_is_constant_is_in_the_caption(comparison):
    said = " ".join(printed(comparison).split())
    shared = "dataset digits, 5 shots · backbone resnet10t · head linear · 5 seeds · 3 trials an arm · 20 epochs"
    assert said.startswith(f"{shared} · 100 labels freeze_strategy lr_factor val")


def test_what_varies_is_a_column(make_record):
    records = [
        make_record("full", arm={"backbone": "vit"}, settings={"backbone.name": "vit"}),
        make_record("full", seed=0),
        make_record("full", seed=1),
    ]
    header = next(line for line in printed(compare_records(records)).splitlines() if "freeze_strategy" in line)
    assert header.split()[:4] == ["backbone", "freeze_strategy", "seeds", "val"]


def test_a_wide_terminal_shows_memory(comparison):
    assert "512 MiB" in printed(comparison, width=120)
    assert "in table.md: memory" in printed(comparison, width=100)


def test_each_dataset_has_its_own_table(make_record):
    records = [make_record(arm={"dataset": name}, seed=seed) for name in ("digits", "letters") for seed in range(3)]
    shown = printed(compare_records(records))
    assert shown.count("freeze_strategy") == 2
    assert shown.index("dataset digits") < shown.index("dataset letters") < shown.index("Verdict on digits")


def test_a_narrow_terminal_goes_without_costs_rather_than_wrap_names(make_record):
    wide = [make_record(arm={"backbone": backbone}) for backbone in ("test_vit, outputs/letters", "resnet10t")]
    shown = printed(compare_records(wide), width=66)
    assert "in table.md: trained, memory" in shown
    assert any(line.startswith("test_vit, outputs/letters  full") for line in shown.splitlines())


def test_an_ascii_terminal_is_no_error(comparison):
    assert "0.962 +/-0.005" in printed(comparison, encoding="ascii")


def test_many_lost_jobs_do_not_flood_the_terminal(make_record):
    jobs = [
        {"id": str(n), "overrides": [], "state": "failed", "cause": "c", "log": None, "seconds": None}
        for n in range(50)
    ]
    lost = compare_records([make_record()], jobs)
    assert printed(lost).count("- failed: ") == 8
    assert "- and 42 more, in table.md" in printed(lost)
    assert table_markdown(lost).count("| failed |") == 50


def test_csv_holds_every_number_exactly(comparison):
    rows = list(csv.DictReader(io.StringIO(table_csv(comparison))))
    assert [row["freeze_strategy"] for row in rows] == [row.arm.freeze_strategy for row in comparison.rows]
    for line, row in zip(rows, comparison.rows, strict=True):
        assert float(line["test_accuracy"]) == row.test_accuracy.mean
        assert float(line["test_accuracy_low"]) == row.test_accuracy.low
        assert line["transfer_gain"] == ("" if row.transfer_gain is None else repr(row.transfer_gain.mean))
        assert line["p_value"] == ("" if row.p_value is None else repr(row.p_value))
    assert rows[-1]["transfer_gain"].startswith("-")  # a negative number is no formula


def test_markdown_has_verdict_table_and_caption(comparison):
    text = table_markdown(comparison)
    lines = text.splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + len(ARMS)
    assert {line.count("|") for line in table} == {14}
    assert lines[2].startswith("Verdict: full (resnet10t)")
    assert "dataset digits, 5 shots · backbone resnet10t" in text


@pytest.mark.parametrize("name", NASTY)
def test_names_do_no_harm(make_record, name):
    jobs = [{"id": "j", "overrides": [name], "state": "failed", "cause": name, "log": name, "seconds": 1.0}]
    records = [
        make_record("full", seed, arm={"freeze_strategy": name, "dataset": name, "backbone": name}, notes=(name,))
        for seed in range(3)
    ]
    records += [make_record("from_scratch", seed, test=0.8, arm={"dataset": name}) for seed in range(3)]
    comparison = compare_records(records, jobs)
    assert any(row.arm.freeze_strategy == name for row in comparison.rows)  # exact as data

    shown = printed(comparison, force_terminal=True, color_system=None)
    markdown, table = table_markdown(comparison), table_csv(comparison)
    for text in (shown, markdown, table):
        text.encode()  # a lone surrogate would fail here
        assert not any(c in text for c in "\x1b\x9b\r\t\u202e")
    # Markup that had been obeyed would be gone, and so would :smile:.
    if name.startswith(("[red]", "🙂", "<script>")):
        assert name in shown

    header, *rows = csv.reader(io.StringIO(table))
    assert len(rows) == 2
    assert all(len(row) == len(header) for row in rows)
    assert not any(cell.startswith(("=", "+", "@", "\uff1d")) for row in rows for cell in row[:6])

    assert "<script>" not in markdown
    lines = [line.replace("\\|", "") for line in markdown.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 2 + 2 + 1
    assert len({line.count("|") for line in lines[:4]}) == 1


@pytest.mark.parametrize(
    ("text", "safe"), [("=1", "'=1"), ("-x", "'-x"), (" \n=1", "'=1"), ("a=1", "a=1"), ("", ""), ("\x1b=1", "'=1")]
)
def test_csv_text(text, safe):
    assert csv_text(text) == safe


@pytest.mark.parametrize(
    ("text", "safe"),
    [("a|b", "a\\|b"), ("last_n_blocks", "last_n_blocks"), ("_x_", "\\_x\\_"), ("<b>&", "&lt;b&gt;&amp;")],
)
def test_markdown_text(text, safe):
    assert markdown_text(text) == safe


@pytest.mark.parametrize(
    ("function", "value", "text"),
    [
        (wording.signed, 0.0364, "+0.036"),
        (wording.signed, -0.0211, "\N{MINUS SIGN}0.021"),
        (wording.signed, -0.0001, "0.000"),
        (wording.p_text, 0.0004, "p<0.001"),
        (wording.p_text, 0.0042, "p=0.004"),
        (wording.p_text, 0.049, "p=0.049"),
        (wording.p_text, 0.05, "p=0.050"),
        (wording.p_text, 0.41, "p=0.41"),
        (wording.p_text, 1.0, "p=1.00"),
        (wording.count, 650, "650"),
        (wording.count, 5130, "5.1k"),
        (wording.count, 999_960, "1.0M"),
        (wording.count, 86_567_656, "86.6M"),
        (wording.count, 304_000_000, "304M"),
        (wording.seconds, 4.14, "4.1 s"),
        (wording.seconds, 312, "312 s"),
        (wording.seconds, 8640, "2.4 h"),
        (wording.memory, 913 * 2**20, "913 MiB"),
        (wording.memory, 12.4 * 2**30, "12.4 GiB"),
        (wording.listed, [], ""),
        (wording.listed, ["a"], "a"),
        (wording.listed, ["a", "b", "c"], "a, b and c"),
        (safe_text.plain, "a\x1b[1mb\n c\u202e", "a[1mb c"),
    ],
)
def test_wording(function, value, text):
    assert function(value) == text


def test_an_interval_of_a_share_stays_within_0_and_1():
    near_one = Estimate(n=3, mean=0.99, sd=0.01, low=0.965, high=1.015)
    assert wording.interval(near_one, of_share=True) == "[0.965, 1.000]"
    assert wording.with_margin(near_one) == "0.990 ±0.025"
    assert wording.with_margin(Estimate(n=1, mean=0.9, sd=None, low=None, high=None)) == "0.900"


def test_further_test_sets_stand_on_the_terminal(make_record):
    metrics = {name: {"accuracy": value, "macro_f1": value, "nll": 0.3} for name, value in
               (("val", 0.9), ("test", 0.9), ("test/sketch", 0.421))}  # fmt: skip
    records = [make_record("full", seed, metrics=metrics) for seed in range(3)]
    columns = {column.title: column for column in compact_columns(compare_records(records).rows)}
    assert columns["sketch"].cell(compare_records(records).rows[0]) == "0.421"
    assert columns["sketch"].optional  # a narrow terminal names it as what stands in table.md


def test_datasets_with_and_without_folds_are_explained_apart(make_record):
    plain = [make_record(name, seed) for name in ("full", "from_scratch") for seed in range(3)]
    folds = [
        make_record(
            name,
            seed,
            arm={"dataset": "birds, 3 folds"},
            fingerprint=f"f{fold}",
            settings={"dataset.folds": 3, "dataset.fold": fold},
        )
        for name in ("full", "from_scratch")
        for seed in range(3)
        for fold in range(3)
    ]
    only, both = (" ".join(explanation(compare_records(records).rows)) for records in (plain, plain + folds))
    assert "splits" not in only.replace("by seed and split", "")
    assert "over seeds, and over splits, widened" in both
    assert "paired t-test over seeds, and corrected resampled t-test for datasets that ran on several splits" in both
