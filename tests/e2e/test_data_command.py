"""``tl data`` and bad images as a user meets them: exit codes, what is printed, what is written, what a run records."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.conftest import TINY
from tl_experiments.cli import main
from tl_experiments.records import RunRecord

Tl = Callable[..., tuple[int, str, str]]
HOSTILE = [
    *("up..\\..\\up", "<script>alert(1)<script>", "=cmd|calc", "[red]", "\x1b[31mESC\x1b]0;x\x07"),
    *("snow\u2603\U0001f600", "a\nb"),
]


@pytest.fixture
def tl(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Tl:
    """Run a command in this process, in an empty folder; returns exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tl", *arguments])
        monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capfd.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return call


def _save(path: Path | bytes, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 20, 3), dtype=np.uint8)
    with open(path, "xb") as stream:
        Image.fromarray(pixels).save(stream, "PNG")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three splits of two classes, random images."""
    for number, split in enumerate(("train", "val", "test")):
        for label in ("ants", "bees"):
            folder = tmp_path / "photos" / split / label
            folder.mkdir(parents=True)
            for index in range(6 if split == "train" else 3):
                _save(folder / f"{index}.png", hash((number, label == "ants", index)) % 2**32)
    return tmp_path / "photos"


def _options(root: Path | str) -> list[str]:
    # the last dataset= counts
    return [*TINY[:3], "dataset=image_folder", f'dataset.root="{root}"', "trainer.max_epochs=1", *TINY[-2:]]


def test_a_clean_dataset_is_counted(tl: Tl, photos: Path, tmp_path: Path) -> None:
    code, out, _ = tl("data", "check", "dataset=image_folder", f"dataset.root={photos}", "--json", "check.json")
    assert code == 0
    assert [line.split() for line in out.splitlines()[:5]] == [
        ["image_folder:", "24", "images,", "2", "classes"],
        ["train", "val", "test"],
        ["ants", "6", "3", "3"],
        ["bees", "6", "3", "3"],
        ["all", "12", "6", "6"],
    ]
    assert "sizes     width 20 to 20 (median 20), height 16 to 16 (median 16), width/height 1.25" in out
    assert "files     PNG 24; RGB 24" in out
    assert "verdict   fit for training" in out
    content = json.loads((tmp_path / "check.json").read_text())
    assert content["classes"] == {name: {"train": 6, "val": 3, "test": 3} for name in ("ants", "bees")}
    assert content["imbalance"] == 1
    assert (content["broken"], content["copies"], content["near_duplicates"]) == ([], [], [])


def test_findings_end_with_1_and_stand_complete_in_the_file(tl: Tl, photos: Path, tmp_path: Path) -> None:
    (photos / "train/ants/text.jpg").write_text("text")
    shutil.copy(photos / "train/ants/0.png", photos / "test/ants/again.png")
    shutil.copy(photos / "train/ants/1.png", photos / "train/bees/1b.png")
    code, out, _ = tl("data", "check", "--json", "check.json", "dataset=image_folder", f"dataset.root={photos}")
    assert code == 1
    content = json.loads((tmp_path / "check.json").read_text())
    assert [one["path"] for one in content["broken"]] == [str(photos / "train/ants/text.jpg")]
    assert {"items": ["train/ants/0.png", "test/ants/again.png"], "splits": ["train", "test"]} in content["copies"]
    assert content["contradictions"] == [["train/ants/1.png", "train/bees/1b.png"]]
    assert "broken    1 images cannot be used" in out
    assert f"{photos}/train/ants/text.jpg: cannot be decoded: no image format that is read, 4 bytes" in out
    assert "leakage   1 images stand in more than one split, byte for byte\n" in out
    assert "train/ants/1.png (ants) = train/bees/1b.png (bees)" in out
    assert "verdict   mend before training: broken images, leakage, contradicting labels" in out


@pytest.mark.parametrize(
    ("arguments", "last_line"),
    [
        (["check", "dataset=image_folder", "dataset.root=nowhere"], "error: dataset.root: nowhere does not exist, "),
        (
            ["check", "dataset=imge_folder"],
            r"error: dataset: unknown choice 'imge_folder' -> did you mean image_folder",
        ),
        (["chek"], "error: tl data chek: no such action -> did you mean check?"),
        (["preview", "--views", "0"], "error: --views: got 0 -> give 1 to 32"),
        (["preview", "--out", "x.txt"], "error: --out: x.txt, expected a name that ends in .png -> --out x.png"),
        (
            ["check", "/a photo"],
            "error: /a photo: a path, expected options as for tl train -> dataset=image_folder dataset.root='/a photo'",
        ),
        (["check", "--jsn", "x"], "error: tl data check: unrecognized arguments: --jsn -> see tl data check --help"),
    ],
)
def test_bad_input_ends_with_2(tl: Tl, arguments: list[str], last_line: str) -> None:
    code, _, err = tl("data", *arguments)
    assert code == 2
    assert err.splitlines()[-1].startswith(last_line)


def test_data_sets_without_files_are_checked_too(tl: Tl) -> None:
    code, out, _ = tl("data", "check", "dataset=digits")
    assert code in (0, 1)
    assert out.startswith("digits: 1797 images, 10 classes\n")


def test_the_check_loads_no_torch(photos: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from tl_experiments.commands.datasets import main\n"
        f"main(['check', 'dataset=image_folder', 'dataset.root={photos}'])\n"
        "print(sorted({'torch', 'torchvision', 'timm', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("sweep", [[], ["-m", "seed=0,1"]], ids=["run", "sweep"])
def test_broken_images_end_a_run_before_its_first_epoch(tl: Tl, photos: Path, tmp_path: Path, sweep: list[str]) -> None:
    for number in range(7):
        (photos / f"train/ants/broken{number}.jpg").write_bytes(b"")
    code, _, err = tl("train", *sweep, *_options(photos), "name=here")
    assert code == 2
    last = err.splitlines()[-1]
    assert last.startswith("error: dataset: 7 of 31 images cannot be used: ")
    assert f"{photos}/train/ants/broken0.jpg (cannot be decoded: no image format that is read, 0 bytes)" in last
    listed = (tmp_path / "outputs/here/bad_images.csv").read_text().splitlines()
    assert len(listed) == 8
    assert not list(tmp_path.rglob("metrics.jsonl"))
    assert not list(tmp_path.rglob("start.json"))


def test_skipped_images_stand_in_the_record(tl: Tl, photos: Path, tmp_path: Path) -> None:
    (photos / "train/ants/broken.jpg").write_bytes(b"")
    code, _, err = tl("train", *_options(photos), "name=here", "dataset.on_bad=skip")
    assert code == 0, err
    (folder,) = (path.parent for path in tmp_path.rglob("record.json"))
    record = RunRecord.read(folder)
    reason = "cannot be decoded: no image format that is read, 0 bytes"
    assert record.data["skipped"] == [{"item": "train/ants/broken.jpg", "reason": reason}]
    assert record.data["sizes"]["train"] == 12
    assert any(note.startswith("Left out 1 images") for note in record.data["notes"])
    assert f"note: Left out 1 images that cannot be used: train/ants/broken.jpg ({reason})." in err
    assert tl("train", *_options(photos), "name=here", "dataset.on_bad=skip")[0] == 0  # done, and unchanged


def test_leakage_is_a_note_of_the_run(tl: Tl, photos: Path, tmp_path: Path) -> None:
    shutil.copy(photos / "train/ants/0.png", photos / "test/ants/again.png")
    assert tl("train", *_options(photos))[0] == 0
    (path,) = tmp_path.rglob("record.json")
    expected = "Leakage: 1 image stands in more than one split (train/ants/0.png = test/ants/again.png)."
    assert expected in RunRecord.read(path.parent).data["notes"]


def test_hostile_names_are_safe_on_the_disk_and_on_the_terminal(tl: Tl, photos: Path, tmp_path: Path) -> None:
    names = [f"{name}.png" for name in (*HOSTILE, "x" * 250)]
    for split in ("train", "test"):
        for number, name in enumerate(names):
            _save(photos / split / "ants" / name, 1000 + number + 100 * (split == "test"))
    for number, split in enumerate(("train", "val", "test")):
        for label, name in enumerate(names[:7]):
            (photos / split / name).mkdir()
            for index in range(2):
                _save(photos / split / name / f"{index}.png", 5000 + 100 * number + 10 * label + index)
    (photos / "train" / names[4] / f"broken{names[4]}").write_bytes(b"")
    before = {path for path in tmp_path.rglob("*") if "outputs" not in path.parts}
    code, out, err = tl("train", "-m", *_options(photos), "seed=0,1", "dataset.on_bad=skip", "name=here")
    assert code == 0, err
    checked = tl("data", "check", "dataset=image_folder", f"dataset.root={photos}")
    previewed = tl(
        "data", "preview", "dataset=image_folder", f"dataset.root={photos}", "dataset.on_bad=skip", *TINY[:3]
    )
    assert (checked[0], previewed[0]) == (1, 0)
    logs = [path.read_text() for path in (tmp_path / "outputs").rglob("*.log")]
    assert logs
    for text in (out, err, *checked[1:], *previewed[1:], *logs):
        assert "\x1b[31m" not in text
        assert "\x07" not in text
    outside = {path for path in tmp_path.rglob("*") if "outputs" not in path.parts}
    assert outside - before == {tmp_path / "preview.png"}
    for path in (tmp_path / "outputs").rglob("predictions.parquet"):
        table = pq.read_table(path)
        assert {f"test/ants/{name}" for name in names} <= set(table["item"].to_pylist())
        assert set(names[:7]) <= set(table["label"].to_pylist())


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names are text on this file system")
@pytest.mark.parametrize("strategy", ["feature_extraction", "full"])
def test_names_that_are_no_utf8_are_written_out(tl: Tl, photos: Path, tmp_path: Path, strategy: str) -> None:
    root = os.fsencode(photos)
    for split in (b"train", b"val", b"test"):
        _save(os.path.join(root, split, b"ants", b"caf\xe9.png"), int.from_bytes(split, "big") % 2**32)
        os.rename(os.path.join(root, split, b"bees"), os.path.join(root, split, b"b\xffes"))
    with open(os.path.join(root, b"train", b"ants", b"bad\xe9.jpg"), "xb"):
        pass
    code, _, err = tl("train", "-m", *_options(photos), f"freeze_strategy={strategy}", "name=here")
    assert code == 2
    assert "bad\ufffd.jpg (cannot be decoded: " in err.splitlines()[-1]
    assert "bad\\xe9.jpg" in (tmp_path / "outputs/here/bad_images.csv").read_text()
    code, _, err = tl(
        "train", "-m", *_options(photos), f"freeze_strategy={strategy}", "seed=0,1", "dataset.on_bad=skip", "name=here"
    )
    assert code == 0, err
    records = [RunRecord.read(path.parent) for path in (tmp_path / "outputs").rglob("record.json")]
    assert [record.classes for record in records] == [("ants", "b\\xffes")] * 2
    assert [[one["item"] for one in record.data["skipped"]] for record in records] == [["train/ants/bad\\xe9.jpg"]] * 2
    for path in (tmp_path / "outputs").rglob("predictions.parquet"):
        table = pq.read_table(path)
        assert "test/ants/caf\\xe9.png" in table["item"].to_pylist()
        assert "b\\xffes" in table["label"].to_pylist()


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names are text on this file system")
def test_a_root_that_is_no_utf8_is_a_root(photos: Path, tmp_path: Path) -> None:
    """In a process of its own: the argument reaches Python as bytes."""
    root = os.path.join(os.fsencode(tmp_path), b"im\xe9ges")
    os.rename(photos, root)
    call = [sys.executable, "-m", "tl_experiments", "train", *_options("X")]
    call = [part if not part.startswith("dataset.root") else b"dataset.root='" + root + b"'" for part in call]  # type: ignore[misc]
    done = subprocess.run(call, capture_output=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    (path,) = (tmp_path / "outputs").rglob("record.json")
    assert RunRecord.read(path.parent).config["dataset"]["root"] == os.fsdecode(root)


def test_preview_shows_rows_of_images_and_columns_of_views(tl: Tl, photos: Path, tmp_path: Path) -> None:
    for augmentation in ("none", "trivial", "mixup"):
        arguments = ["dataset=image_folder", f"dataset.root={photos}", f"augmentation={augmentation}", *TINY[:3]]
        code, out, err = tl("data", "preview", *arguments, "--images", "3", "--views", "2", "--out", "grid.png")
        assert (code, out) == (0, "grid.png\n"), err
        with Image.open(tmp_path / "grid.png") as grid:
            grid.load()
            assert grid.format == "PNG"
            assert grid.width < grid.height  # three columns, three rows with titles
