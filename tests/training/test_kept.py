"""What decides whether kept activations serve, what half precision costs, and heads that are solved on them."""

from __future__ import annotations

import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
from PIL import Image

from tl_experiments.data import digests
from tl_experiments.errors import ConfigError
from tl_experiments.features.rows import columns_of, from_rows, rounding, to_rows
from tl_experiments.training.build import build
from tl_experiments.training.checkpoint import load_run
from tl_experiments.training.identity import job_id
from tl_experiments.training.run import run


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Eight PNGs a split of two classes, and a config of them; files count as settled at once."""
    monkeypatch.setattr(digests, "_SETTLED_NS", 0)
    root, rng = tmp_path / "photos", np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for name in ("dark", "light"):
            (root / split / name).mkdir(parents=True)
            for number in range(4):
                Image.fromarray(rng.integers(0, 255, (40, 36, 3), dtype=np.uint8)).save(
                    root / split / name / f"{number}.png"
                )
    return root


@pytest.fixture
def of_photos(tiny, photos):
    def make(*overrides):
        return tiny("dataset=image_folder", f"dataset.root={photos}", "dataset.shots=null", *overrides)

    return make


def weights(path, seed):
    torch.manual_seed(seed)
    torch.save(timm.create_model("test_resnet", num_classes=0).state_dict(), path)
    return f"backbone.weights={path}"


ALL, NONE = 24, 0


@pytest.mark.parametrize("strategy", ["feature_extraction", "last_n_blocks"])
def test_any_ingredient_makes_a_miss(of_photos, photos, tmp_path, log, strategy):
    """Images decoded and encoded anew, after one change at a time to what is kept already."""
    first = [f"freeze_strategy={strategy}", "trainer.max_epochs=3", weights(tmp_path / "a.pth", 1)]

    def work(*overrides, name=f"run-{strategy}"):
        log.clear()
        found = run(of_photos(*first, *overrides), tmp_path / name).work
        return found["images_decoded"], found["images_encoded"]

    assert work() == (ALL, ALL)
    assert work() == (NONE, NONE)
    preprocessing = "backbone.preprocessing"
    for change in ("image_size=40", "crop_fraction=0.7", "interpolation=nearest"):
        assert work(f"{preprocessing}.{change}") == (ALL, ALL), change
    same_images = [
        [f"{preprocessing}.mean=[0.1,0.2,0.3]"],
        [weights(tmp_path / "b.pth", 2)],
        ["trainer.precision=bf16-mixed"],
        ["trainer.memory_format=contiguous"],
        ["backbone.kwargs={act_layer: gelu}"],
        ["feature_cache.dtype=float16"],
    ]
    for overrides in same_images:
        assert work(*overrides) == (NONE, ALL), overrides
    for overrides in (["seed=5"], ["optimizer.lr=0.5"], ["trainer.batch_size=6"], ["trainer.max_epochs=4"]):
        assert work(*overrides) == (NONE, NONE), overrides
    assert not [line for line in log.messages if "since it was last read" in line]

    shutil.copy(photos / "val/light/0.png", photos / "train/dark/0.png")
    assert work(name="replaced") == (ALL, ALL)
    line = f"data      {photos}: 1 changed since it was last read; what was kept of its images serves no more"
    assert [message for message in log.messages if "since it was last read" in message] == [line]
    assert work(name="replaced") == (NONE, NONE)
    assert line not in log.messages
    for split in ("train", "val", "test"):
        (photos / split / "dark").rename(photos / split / "unlit")
    assert work(name="renamed") == (ALL, ALL)
    assert [message for message in log.messages if "12 came, 12 went since it was last read" in message]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("strategy", ["feature_extraction", "last_n_blocks"])
def test_half_precision_is_another_job_and_says_what_it_costs(tiny, tmp_path, log, strategy, dtype):
    overrides = [f"freeze_strategy={strategy}", "optimizer=sgd", "optimizer.lr=0.01"]
    whole, half = tiny(*overrides), tiny(*overrides, f"feature_cache.dtype={dtype}")
    assert whole.feature_cache.dtype is None
    assert job_id(whole) != job_id(half)
    expected, found = run(whole, tmp_path / "whole"), run(half, tmp_path / "half")
    assert not [note for note in expected.notes if "kept as" in note]
    (note,) = [note for note in found.notes if note.startswith(f"Activations kept as {dtype}: they differ by up to ")]
    assert len([line for line in log.messages if note in line]) == 1
    share = float(note.split()[-5])
    unit = 2.0 ** (-11 if dtype == "float16" else -8)  # half a unit in the last place
    assert unit / 20 < share <= unit
    assert found.metrics["test"]["nll"] == pytest.approx(expected.metrics["test"]["nll"], rel=0.02)
    assert run(half, tmp_path / "again").notes == found.notes  # though nothing is encoded now


def test_numbers_without_room_in_half_precision_are_not_kept(tiny, tmp_path, log):
    large = tmp_path / "large.pth"
    state = timm.create_model("test_resnet", num_classes=0).state_dict()
    for name, tensor in state.items():
        if name.startswith("layer4") and tensor.ndim == 1 and name.endswith("weight"):
            tensor.fill_(1e6)
    torch.save(state, large)
    options = ["feature_cache.dtype=float16", f"backbone.weights={large}"]
    record = run(tiny(*options), tmp_path / "run")
    assert any("some of its activations are no numbers of float16" in message for message in log.messages)
    assert record.work["cached_phases"] == []


def test_rounding_is_numpys():
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(5, 3, 4, generator=generator), torch.arange(10).view(5, 2)]
    columns = columns_of(tensors, torch.float16)
    reference = tensors[0].numpy()
    share = np.abs(reference.astype(np.float16).astype(np.float64) - reference).max() / np.abs(reference).max()
    assert rounding(tensors, columns) == pytest.approx(share)
    assert rounding(tensors, columns_of(tensors)) == 0
    kept = from_rows(torch.from_numpy(to_rows(tensors, columns)), columns)
    assert [tensor.dtype for tensor in kept] == [torch.float32, torch.int64]  # as the tail takes them
    assert torch.equal(kept[0], tensors[0].half().float())
    assert rounding([torch.tensor([[1.0, 1e5]])], columns_of([torch.zeros(1, 2)], torch.float16)) == np.inf


PATHS = {
    "ridge": ["head.penalties=[1e-3,1,100]"],
    "logistic": ["head.penalties=[1e-4,1e-2,10]"],
    "knn": ["head.neighbours=[1,3,15]"],
}


@pytest.mark.parametrize("head", PATHS)
def test_a_solved_head_end_to_end(tiny, tmp_path, head):
    cfg = tiny(f"head={head}", *PATHS[head], "dataset.shots=8")
    record = run(cfg, tmp_path / "path")
    name, settings = cfg.head.path
    assert record.last_step == len(settings)
    assert record.learning_rate == 0
    chosen = sorted(settings, reverse=True)[record.best_step - 1]
    assert f"Val chose {name} {chosen:g} of {', '.join(f'{one:g}' for one in sorted(settings, reverse=True))}." in (
        record.notes
    )

    # each setting alone has what it had on the path, and the chosen one is the best of them on val
    key = "neighbours" if head == "knn" else "penalties"
    scores = {}
    for setting in settings:
        alone = run(tiny(f"head={head}", f"head.{key}=[{setting}]", "dataset.shots=8"), tmp_path / f"{setting}")
        scores[setting] = (alone.metrics["val"]["accuracy"], -alone.metrics["val"]["nll"])
    assert scores[chosen] == pytest.approx(max(scores.values()), rel=1e-4)
    assert record.metrics["val"]["accuracy"] == pytest.approx(scores[chosen][0])

    # the stored model gives the run's outputs again
    rows = pq.read_table(tmp_path / "path" / "predictions.parquet").to_pylist()
    model, data = load_run(tmp_path / "path"), build(cfg).data
    for split in ("val", "test"):
        stored = torch.tensor([row["probabilities"] for row in rows if row["split"] == split], dtype=torch.float64)
        with torch.no_grad():
            logits = torch.cat([model(batch["image"]) for batch in data.eval_loader(split)])
        torch.testing.assert_close(logits.double().softmax(1), stored, rtol=1e-4, atol=1e-6)
    assert record.work["images_encoded"] == sum(record.data["sizes"].values())


@pytest.mark.parametrize("head", PATHS)
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("freeze_strategy=full", r"which is solved on fixed features, together with full -> freeze_strategy="),
        ("freeze_strategy=lp_ft", r"which is solved on fixed features, together with lp_ft -> freeze_strategy="),
        ("augmentation=flip_crop", r"which sees each image once, together with augmentation=flip_crop -> augm"),
        ("feature_cache=off", r"which is solved on kept features, together with feature_cache=off -> feature_cache="),
        ("augmentation=mixup", r"which sees each image once, together with augmentation=mixup -> augmentation=none"),
    ],
)
def test_a_solved_head_refuses_what_it_cannot_use(tiny, head, override, message):
    with pytest.raises(ConfigError, match=rf"head: {head}, {message}") as error:
        tiny(f"head={head}", override)
    assert "\n" not in str(error.value)
