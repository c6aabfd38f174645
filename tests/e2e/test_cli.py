"""The command line as a user meets it: exit codes, the last line on stderr, what is imported, what is left on disk."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys

import pytest
from PIL import Image

from tests.conftest import TINY
from tl_experiments.cli import main

HEAVY = "torch torchvision timm pytorch_lightning torchmetrics wandb sklearn scipy"


@pytest.mark.parametrize(
    ("arguments", "code", "last_line"),
    [
        (["--help"], 0, None),
        (["train", "--help"], 0, None),
        (["list", "backbones", "vit*"], 0, None),
        (["train", "--cfg", "job"], 0, None),
        (
            ["train", "trainer.max_epoch=3"],
            2,
            r"error: trainer.max_epoch: unknown key -> did you mean trainer.max_epochs\?",
        ),
        (["train", "optimizer.lr=abc"], 2, r"error: optimizer.lr: got 'abc', expected a number or null -> .*"),
        (["train", "optimizer.lr=-1"], 2, r"error: optimizer.lr: got -1.0, expected a number above 0.*"),
        (["train", "freeze_strategy=ful"], 2, r"error: freeze_strategy: unknown choice 'ful' -> did you mean full\?"),
        (
            ["train", "backbone.name=resnet_18"],
            2,
            r"error: backbone.name: timm has no model 'resnet_18' -> did you mean .*",
        ),
        (["train", "dataset.root=~/photos"], 2, r"error: dataset.root=~/photos: .* quote twice.*"),
        (["train", "-m", "freeze_strategy=full,ful"], 2, r"error: freeze_strategy: unknown choice 'ful' -> .*"),
        (["train", "-m", "seed=0,1", "trainer.max_epoch=3"], 2, r"error: trainer.max_epoch: unknown key -> .*"),
        (["train", "backbone.weights=none.pth"], 2, r"error: backbone.weights: no file none.pth -> .*"),
        (
            ["train", "--seed", "3"],
            2,
            r"error: tl train --seed: no such option -> config values have no dashes: seed=.*",
        ),
        (
            ["train", "-m", "print_layout=true", "seed=0,1", "backbone.weights=random"],
            2,
            r"error: print_layout: true in .*",
        ),
        (["train", "-m", "experiment=photos,digits_5_shots"], 2, r"error: experiment: swept, .*"),
        (["train", "tracker=csv,wandb"], 2, r"error: tracker: swept, .* -> several at once: 'tracker=\[csv,wandb\]'"),
        (["train", "-m", "tracker=csv,wandb", "seed=0,1"], 2, r"error: tracker: swept, but it changes no result -> .*"),
        (["train", "tracker=[csv,wandbb]"], 2, r"error: tracker: unknown choice 'wandbb' -> did you mean wandb\?"),
        (
            ["train", "tracker=wandb", "tracker.wandb.projct=x"],
            2,
            r"error: tracker.wandb.projct: unknown key -> did you mean tracker.wandb.project\?",
        ),
        (
            ["train", "tracker=csv", "tracker.wandb.project=x"],
            2,
            r"error: tracker.wandb.project: not an option .* -> only with tracker=wandb",
        ),
        (["trian"], 2, r"error: tl trian: no such verb -> did you mean train.*"),
        (["compare", "nowhere"], 2, r"error: .*nowhere.*-> .*"),
        (["list", "backbone", "xyz*"], 2, r"error: tl list backbone xyz\*: nothing matches -> .*"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_answers_without_torch(arguments, code, last_line, tmp_path):
    """Help and errors in the config come before any data is read, and before torch is imported."""
    program = (
        "import sys, atexit\n"
        f"atexit.register(lambda: print('HEAVY', *sorted(set('{HEAVY}'.split()) & set(sys.modules))))\n"
        f"sys.argv = ['tl', *{arguments!r}]\n"
        "from tl_experiments.cli import main\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert done.stdout.splitlines()[-1] == "HEAVY"
    assert "Traceback" not in done.stderr
    if last_line is not None:
        assert re.fullmatch(last_line, done.stderr.splitlines()[-1])
    assert not (tmp_path / "outputs").exists()  # nothing is left by a command that could not begin


def test_a_single_run_and_its_folder(tl, tmp_path):
    code, out, err = tl("train", *TINY, "name=one")
    assert code == 0, err
    assert out == "outputs/one\n"
    for line in (
        r"data +digits: 10 classes, train 20, val 20, test 359",
        r"backbone +test_resnet:",
        r"phase 0 +feature_ext",
    ):
        assert re.search(line, err)
    (run,) = [path for path in (tmp_path / "outputs" / "one").iterdir() if path.is_dir()]
    files = {
        "start.json",
        "record.json",
        "metrics.jsonl",
        "predictions.parquet",
        "checkpoint.safetensors",
        "checkpoint.json",
    }
    assert {path.name for path in run.iterdir()} == files
    ledger = json.loads((tmp_path / "outputs" / "one" / "sweep.json").read_text())
    assert [(entry["id"], entry["state"]) for entry in ledger["jobs"]] == [(run.name, "ok")]
    stamp = (run / "record.json").stat().st_mtime_ns
    code, out, _ = tl("train", *TINY, "name=one")
    assert (code, out) == (0, "done before: outputs/one\n")
    assert (run / "record.json").stat().st_mtime_ns == stamp


def test_the_same_command_finds_its_folder_without_a_name(tl, tmp_path):
    tl("train", *TINY)
    assert tl("train", *TINY)[1].startswith("done before: outputs/")
    assert len(list((tmp_path / "outputs").glob("[!.]*"))) == 1


def test_a_sweep_ends_in_a_table_and_a_verdict(tl, tmp_path):
    arms = "freeze_strategy=feature_extraction,last_n_blocks,from_scratch"
    command = ["train", "-m", *TINY, "name=arms", arms, "freeze_strategy.n=1,2", "seed=0,1,2"]
    code, out, err = tl(*command)
    assert code == 0, err
    for text in ("feature_extraction", "last_n_blocks(n=1)", "last_n_blocks(n=2)", "from_scratch", "Verdict:", "gain"):
        assert text in out
    assert "12 jobs to run" in err
    folder = tmp_path / "outputs" / "arms"
    assert {path.name for path in (folder / "comparison").iterdir()} >= {"table.csv", "table.md"}
    assert len((folder / "comparison" / "table.csv").read_text().splitlines()) == 5

    program = f"import sys; sys.argv = ['tl', *{command!r}]; from tl_experiments.cli import main; main()"
    counted = (
        "import atexit, sys\n"
        f"atexit.register(lambda: print('HEAVY', *sorted(set('{HEAVY}'.split()) & set(sys.modules))))\n{program}"
    )
    again = subprocess.run([sys.executable, "-c", counted], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert again.stdout.splitlines()[-1] == "HEAVY"  # nothing is trained, nothing heavy even imported
    assert "Verdict:" in again.stdout
    assert tl("compare", "outputs/arms")[:2] == (0, out)


def test_a_failed_job_is_named_with_its_log_and_the_exit_code_is_1(tl, tmp_path):
    (tmp_path / "broken.pth").write_bytes(b"not weights")
    code, out, err = tl("train", "-m", *TINY, "name=mixed", "backbone.weights=random,broken.pth")
    assert code == 1
    last = err.splitlines()[-1]
    assert last.startswith("error: backbone.weights=broken.pth: failed: broken.pth: cannot be read ")
    assert re.search(r"; see outputs/mixed/\w+/job.log; retry_failed=true runs it again$", last)
    assert "Verdict" in out  # the others are compared all the same
    code, _, err = tl("train", "-m", *TINY, "name=allbad", "backbone.weights=broken.pth", "seed=0,1")
    assert code == 1
    assert len([line for line in err.splitlines() if line.startswith("error: ")]) == 2


def test_a_single_run_that_failed_is_tried_again(tl, tmp_path):
    (tmp_path / "w.pth").write_bytes(b"not weights")
    command = ["train", *TINY, "name=again", "backbone.weights=w.pth"]
    for _ in range(2):
        code, _, err = tl(*command)
        assert code == 2
        assert re.fullmatch(r"error: w.pth: cannot be read \(.*\) -> give a .*", err.splitlines()[-1])
    ledger = json.loads((tmp_path / "outputs" / "again" / "sweep.json").read_text())
    assert [(entry["state"], entry["seconds"] > 0) for entry in ledger["jobs"]] == [("failed", True)]
    assert tl("train", *TINY, "name=again")[0] == 0


def test_an_experiments_sweep_is_named_where_it_is_not_run(tl):
    code, _, err = tl("train", "experiment=digits_5_shots", *TINY, "name=one")
    assert code == 0
    assert "note: one run; with -m the experiment's sweep: freeze_strategy=feature_extraction," in err


def test_print_layout(tl):
    code, out, _ = tl("train", *TINY, "freeze_strategy=last_n_blocks", "freeze_strategy.n=1", "print_layout=true")
    assert code == 0
    rows = {line.split()[0]: line.split()[-1] for line in out.splitlines()[1:]}
    rate = rows["head"]
    assert float(rate) > 0
    assert rows == {
        **dict.fromkeys(("stem", "layer1.0", "layer2.0", "layer3.0"), "frozen"),
        "layer4.0": rate,
        "head": rate,
    }


def test_pretrain_then_transfer(tl, tmp_path):
    code, out, err = tl("pretrain", *TINY, "dataset=letters", "dataset.images_per_class=10", "name=source")
    assert code == 0, err
    assert out.splitlines() == [
        "outputs/source",
        "use it with the same backbone options: backbone.weights=outputs/source",
    ]
    code, _, err = tl("train", *TINY, "backbone.weights=outputs/source", "name=target")
    assert code == 0, err
    (record,) = [json.loads(path.read_text()) for path in (tmp_path / "outputs" / "target").glob("*/record.json")]
    assert record["pretraining_s"] > 0
    assert record["arm"]["backbone"] == "test_resnet (source)"
    assert record["weights"]["sha256"]
    assert record["notes"] == []
    _, _, err = tl(
        "train", *TINY, "backbone.weights=outputs/source", "backbone.preprocessing.image_size=64", "name=at_64"
    )
    assert "note: The weights were trained on images of 32 px and this run uses 64 px" in err


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, r"photos.*-> "),
        (lambda root: root.write_text("x"), r"photos.*-> "),
        (lambda root: root.mkdir(), r"photos.*-> "),
        (lambda root: (root.mkdir(), Image.new("RGB", (8, 8)).save(root / "a.png")), r"photos.*-> "),
        (
            lambda root: ((root / "ants").mkdir(parents=True), Image.new("RGB", (8, 8)).save(root / "ants/a.png")),
            r"class",
        ),
    ],
    ids=["missing", "a file", "empty", "flat", "one class"],
)
def test_folders_that_are_no_dataset(tl, tmp_path, make, message):
    make(tmp_path / "photos")
    code, _, err = tl(
        "train", *TINY, "dataset=image_folder", "dataset.shots=null", f"dataset.root={tmp_path / 'photos'}"
    )
    assert code == 2
    assert err.splitlines()[-1].startswith("error: ")
    assert re.search(message, err.splitlines()[-1])
    assert "Traceback" not in err


def test_images_that_changed_since_a_run_are_not_passed_over(tl, tmp_path):
    for name in ("ants", "bees"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (8, 8), (number, 9, 9)).save(tmp_path / "photos" / name / f"{number}.png")
    command = ["train", *TINY, "dataset=image_folder", "dataset.shots=null", f"dataset.root={tmp_path / 'photos'}"]
    assert tl(*command, "name=grow")[0] == 0
    assert tl(*command, "name=grow")[1] == "done before: outputs/grow\n"
    Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "ants" / "new.png")
    for extra in (["name=grow"], ["name=grow", "-m", "seed=0,1"]):
        code, _, err = tl(*command, *extra)
        assert code == 2
        assert re.search(r"error: .*photos: its images changed since job \w+ ran \(.*\) -> give another name=", err)
    assert tl(*command, "name=fresh")[0] == 0


def test_a_terminal_gets_a_bar_and_a_pipe_gets_lines(tmp_path):
    command = [sys.executable, "-m", "tl_experiments", "train", *TINY, "freeze_strategy=full"]
    parent, child = pty.openpty()
    process = subprocess.Popen([*command, "name=terminal"], cwd=tmp_path, stdout=child, stderr=child, text=False)
    os.close(child)
    seen = b""
    while chunk := _read(parent):
        seen += chunk
    assert process.wait() == 0, seen.decode()
    assert b"steps," in seen
    piped = subprocess.run([*command, "name=pipe"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "steps," not in piped.stderr
    for text in (seen.decode(), piped.stderr):
        assert re.search(r"epoch 2 +val accuracy 0\.\d{4}", text)


def _read(descriptor):
    try:
        return os.read(descriptor, 4096)
    except OSError:  # Linux says so when the other end of a terminal closes
        return b""


@pytest.mark.parametrize(("debug", "shown"), [("debug=true", True), ("debug=limit", False), ("debug=false", False)])
def test_debug_shows_the_traceback_above_the_line(debug, shown, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(["train", "optimizer.lr=-1", debug])
    lines = capsys.readouterr().err.splitlines()
    assert end.value.code == 2
    assert lines[-1].startswith("error: optimizer.lr: got -1")
    assert ("Traceback" in lines[0]) is shown


def test_completion_of_a_broken_pipe_is_quiet(tmp_path):
    command = f"{sys.executable} -m tl_experiments list backbones '*' | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=tmp_path, env={**os.environ})
    assert done.stderr == ""
