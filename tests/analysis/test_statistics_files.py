"""The statistics as CSV and the table as LaTeX: whole, exact, and harmless whatever the names."""

import csv
import io
import re

import numpy as np
import pytest
from sklearn.metrics import precision_recall_fscore_support

from tests.analysis.test_comparison_tables import NASTY
from tl_experiments.analysis import compare, evidence
from tl_experiments.analysis.comparison import compare_records
from tl_experiments.analysis.latex import latex_text, table_latex
from tl_experiments.analysis.results import Comparison
from tl_experiments.analysis.statistics_tables import contrasts_csv, overview_csv
from tl_experiments.analysis.tables import table_csv, table_markdown

IN_LATEX = [r"\input{/etc/passwd}", "100% & more $x^2$", "#1~2", "{", "}", "[x]", "*", "a\\"]
ARMS = {"full": 0.95, "feature_extraction": 0.9, "from_scratch": 0.7}


def read(text):
    return list(csv.DictReader(io.StringIO(text)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_sweep, store_sweep):
    return store_sweep(tmp_path_factory.mktemp("stored"), make_sweep(ARMS, seeds=range(4)))


@pytest.fixture(scope="module")
def comparison(folder):
    return compare(folder)


def test_contrasts_hold_every_number_exactly(folder, comparison):
    rows = read((folder / "comparison/contrasts.csv").read_text())
    assert len(rows) == len(comparison.contrasts) == 3
    for row, contrast in zip(rows, comparison.contrasts, strict=True):
        assert row["first_freeze_strategy"] == contrast.first.freeze_strategy
        numbers = {
            "difference": contrast.difference.mean,
            "difference_low": contrast.difference.low,
            "difference_high_bootstrap": contrast.difference.bootstrap_high,
            "p_value": contrast.p_value,
            "p_holm_all": contrast.p_holm_all,
            "wilcoxon_p": contrast.wilcoxon_p,
            "sign_flip_p": contrast.sign_flip_p,
            "hedges_gz": contrast.effect.hedges_gz,
            "cliffs_delta": contrast.effect.cliffs_delta,
            "mcnemar_midp": contrast.images.mcnemar_combined,
            "difference_low_images": contrast.images.low,
        }
        assert {name: float(row[name]) for name in numbers} == numbers
        assert [float(p) for p in row["mcnemar_midp_each_run"].split()] == list(contrast.images.mcnemar_p)
        assert row["primary_test"] == "paired t-test"
        assert float(row["test_images"]) == 60
    assert rows[2]["p_holm_verdict"] == ""  # no contrast of the recommended arm


def test_the_table_by_class_is_that_of_scikit_learn(folder, comparison):
    rows = read((folder / "comparison/per_class.csv").read_text())
    assert len(rows) == 3 * 3
    for arm, runs in evidence(folder).runs.items():
        tables = []
        for run in runs:
            test = run.predictions["test"]
            tables.append(precision_recall_fscore_support(test.labels, test.predicted, labels=range(3)))
        mean = np.mean(tables, axis=0)
        of_arm = [row for row in rows if row["freeze_strategy"] == arm.freeze_strategy]
        assert [row["class"] for row in of_arm] == ["class 0", "class 1", "class 2"]
        for name, values in zip(("precision", "recall", "f1", "support"), mean, strict=True):
            assert [float(row[name]) for row in of_arm] == pytest.approx(values.tolist())
    assert comparison.rows[0].metrics["test"].keys() >= {"auroc", "calibration_error", "balanced_accuracy"}


def test_the_table_has_the_metrics_that_the_records_have(folder, comparison):
    (row, *_) = read((folder / "comparison/table.csv").read_text())
    first = comparison.rows[0]
    for name in ("auroc", "calibration_error", "balanced_accuracy"):
        assert float(row[f"test_{name}"]) == first.metrics["test"][name].mean
    assert float(row["test_accuracy_low_bootstrap"]) == first.test_accuracy.bootstrap_low
    header = next(line for line in (folder / "comparison/table.md").read_text().splitlines() if line.startswith("|"))
    assert {"AUROC", "calibration error", "macro F1", "NLL"} <= {cell.strip() for cell in header.split("|")}
    assert float(row["runs"]) == 4
    assert float(row["all_trials_epochs"]) == 80


def test_datasets_without_a_common_arm_have_a_header_only(folder, comparison):
    assert comparison.overview is None
    assert (folder / "comparison/datasets.csv").read_text().count("\n") == 1


def test_several_datasets_in_csv_and_markdown(make_record):
    records = [
        make_record(name, seed, val=mean, test=mean - 0.001 * seed, arm={"dataset": dataset})
        for dataset in ("a", "b", "c")
        for name, mean in ARMS.items()
        for seed in range(3)
    ]
    comparison = compare_records(records)
    rows = read(overview_csv(comparison.overview))
    assert [row["freeze_strategy"] for row in rows] == list(ARMS)
    assert [float(row["average_rank"]) for row in rows] == [1, 2, 3]
    assert [float(row["critical_difference"]) for row in rows] == pytest.approx(
        [2.343 * np.sqrt(12 / 18)] * 3, abs=2e-3
    )
    text = table_markdown(comparison)
    assert "## Over all datasets" in text
    assert "| full | 1.00 | 0.949 [0.94" in text
    assert Comparison.from_json(comparison.to_json()) == comparison


def test_everything_survives_json(comparison):
    assert Comparison.from_json(comparison.to_json()) == comparison


def test_latex_has_a_booktabs_table_with_the_recommended_arm_in_bold(comparison):
    text = table_latex(comparison)
    lines = text.splitlines()
    rows = [line for line in lines if line.endswith(r" \\")]
    assert len(rows) == 1 + len(ARMS)
    (spec,) = re.findall(r"\\begin\{tabular\}\{([lr]+)\}", text)
    assert {len(re.split(r"(?<!\\)&", row)) for row in rows} == {len(spec)}
    for command in (r"\toprule", r"\midrule", r"\bottomrule", r"\caption{"):
        assert text.count(command) == 1
    assert rows[1].startswith(r"\textbf{full} & ")
    assert "textbf" not in rows[2] + rows[3]
    assert r"feature\_extraction" in text


@pytest.mark.parametrize("name", [*NASTY, *IN_LATEX])
def test_names_do_no_harm_in_latex_and_csv(make_record, name):
    records = [
        make_record(strategy, seed, test=0.9 - seed / 100, arm={"dataset": name, "backbone": name, "head": head})
        for strategy, head in (("full", "linear"), ("from_scratch", name))
        for seed in range(3)
    ]
    comparison = compare_records(records)
    text = table_latex(comparison)
    text.encode()
    assert not any(c in text for c in "\x1b\x9b\r\t\u202e")
    # What is left without our own commands has no active character.
    bare = re.sub(r"\\[&%$#_{}]|\\text\w+\{\}|\\ldots\{\}|\$(\\pm|-|\\cdot)\$", "", text)
    ours = r"\\(begin|end|caption|textbf)\b|\\(centering|toprule|midrule|bottomrule)$|\\\\$"
    bare = re.sub(ours, "", bare, flags=re.M)
    assert not set(bare) & set("\\$#%~^")
    assert bare.count("{") == bare.count("}")
    rows = [line for line in text.splitlines() if line.endswith(r" \\")]
    assert len({len(re.split(r"(?<!\\)&", row)) for row in rows}) == 1

    for table in (contrasts_csv(comparison.contrasts), table_csv(comparison)):
        header, *lines = csv.reader(io.StringIO(table))
        assert all(len(line) == len(header) for line in lines)
        texts = [i for i, key in enumerate(header) if re.search("dataset|backbone|head|freeze|settings", key)]
        assert not any(line[i].startswith(("=", "+", "-", "@", "\uff1d")) for line in lines for i in texts)


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("a_b & 5%", r"a\_b \& 5\%"),
        ("\\", r"\textbackslash{}"),
        ("[x]", "{}[x]"),
        ("0.9 ±0.1", r"0.9 $\pm$0.1"),
        ("\N{MINUS SIGN}0.1", "$-$0.1"),
        ("größe", "größe"),
    ],
)
def test_latex_text(text, safe):
    assert latex_text(text) == safe
