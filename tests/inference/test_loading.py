"""A finished run as a model: its outputs are those of a plain timm model, and what is missing is named."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional
from torchvision import transforms

from tl_experiments import load_model, run
from tl_experiments.analysis.winner import winner
from tl_experiments.errors import ConfigError, DataError, UserError, WeightsError
from tl_experiments.metrics.stored import read_predictions
from tl_experiments.records import RunRecord


@pytest.mark.parametrize(("name", "interpolation"), [("ridge", "bilinear"), ("vit", "bicubic"), ("mlp", "bicubic")])
def test_the_outputs_are_those_of_plain_timm_and_torchvision(finished, pictures, name, interpolation):
    folder = finished(name)
    state = load_file(folder / "checkpoint.safetensors")  # random weights: it holds everything
    size, crop = {"ridge": (32, 0.8), "vit": (64, 0.95), "mlp": (32, 0.95)}[name]
    options = {"img_size": 64} if name == "vit" else {}
    net = timm.create_model("test_vit" if name == "vit" else "test_resnet", num_classes=0, **options)
    prefix = "backbone.net."
    net.load_state_dict({key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)})
    preprocessing = transforms.Compose(
        [
            transforms.Resize(math.floor(size / crop), transforms.InterpolationMode(interpolation)),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ]
    )
    paths = pictures(7)
    batch = torch.stack([preprocessing(Image.open(path).convert("RGB")) for path in paths])
    with torch.no_grad():
        features = net.eval()(batch)
        if name == "mlp":
            hidden = functional.relu(functional.linear(features, state["head.0.weight"], state["head.0.bias"]))
            logits = functional.linear(hidden, state["head.3.weight"], state["head.3.bias"])
        else:
            logits = functional.linear(features, state["head.weight"], state["head.bias"])
    model = load_model(folder, "cpu")
    assert (model.preprocessing.image_size, model.preprocessing.crop_fraction) == (size, crop)
    ours = model.logits(torch.stack([model.prepare(model.read(path)) for path in paths]))
    torch.testing.assert_close(ours, logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(model.predict_proba(paths), logits.double().softmax(1), atol=1e-6)
    assert model.predict(paths) == [str(label) for label in logits.argmax(1).tolist()]


def test_paths_pictures_and_arrays_are_one(finished, pictures):
    model = load_model(finished("full"), "cpu")
    paths = [path for path in pictures(6) if path.suffix == ".png"]
    images = [Image.open(path) for path in paths]
    by_path = model.predict_proba(paths)
    assert np.array_equal(model.predict_proba(images), by_path)
    assert np.array_equal(model.predict_proba([np.asarray(image) for image in images]), by_path)
    assert np.array_equal(model.predict_proba([image.convert("RGBA") for image in images]), by_path)
    for alone in (paths[0], str(paths[0]), images[0], np.asarray(images[0])):
        assert model.predict(alone) == model.predict([paths[0]])
    assert model.predict_proba([]).shape == (0, 10)
    with pytest.raises(DataError, match=r"float32 \(4, 4\), expected uint8 \(height, width, channels\)"):
        model.predict([np.zeros((4, 4), np.float32)])
    with pytest.raises(DataError, match="image: 5 channels, the model takes 3 -> "):
        model.predict([np.zeros((4, 4, 5), np.uint8)])


def test_names_come_from_the_checkpoint_whatever_order_they_stand_in(tiny, tmp_path):
    """Classes of a folder are sorted as text; those of the run are what its checkpoint lists, in its order."""
    rng = np.random.default_rng(0)
    for split, count in {"train": 6, "val": 2, "test": 4}.items():
        for name, colour in {"10": 220, "2": 120, "zebra": 20}.items():
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                noise = rng.integers(0, 30, (16, 16, 3), dtype=np.uint8)
                Image.fromarray((noise + colour).astype(np.uint8)).save(folder / f"{number}.png")
    cfg = tiny("dataset=image_folder", f"dataset.root={tmp_path / 'data'}", "dataset.shots=null", "head=ridge")
    run(cfg, tmp_path / "run")
    stored = read_predictions(tmp_path / "run")["test"]
    model = load_model(tmp_path / "run", "cpu")
    assert model.classes == ("10", "2", "zebra")
    ours = model.predict_proba([tmp_path / "data" / item for item in stored.items])
    np.testing.assert_allclose(ours, stored.probabilities, atol=1e-6)
    paths = [tmp_path / "data" / "test" / name / "0.png" for name in ("zebra", "10", "2")]
    assert model.predict(paths) == ["zebra", "10", "2"]


def test_a_model_of_five_channels_takes_arrays(tiny, tmp_path):
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for name in ("a", "b"):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for number in range(3):
                np.save(folder / f"{number}.npy", rng.integers(0, 256, (9, 12, 5), dtype=np.uint8))
    overrides = ["dataset=image_folder", f"dataset.root={tmp_path / 'data'}", "dataset.channels=5"]
    run(tiny(*overrides, "dataset.shots=null"), tmp_path / "run")
    stored = read_predictions(tmp_path / "run")["test"]
    model = load_model(tmp_path / "run", "cpu")
    ours = model.predict_proba([tmp_path / "data" / item for item in stored.items])
    np.testing.assert_allclose(ours, stored.probabilities, atol=1e-6)
    with pytest.raises(DataError, match="a picture, the model takes arrays of 5 channels"):
        model.predict([Image.new("RGB", (4, 4))])


@pytest.fixture
def based(tiny, tmp_path):
    """A run whose checkpoint holds its head alone, and the file that it is based on."""
    torch.manual_seed(3)
    state = timm.create_model("test_resnet", num_classes=7).state_dict()
    base = tmp_path / "weights" / "base.safetensors"
    base.parent.mkdir()
    save_file({key: tensor.clone() for key, tensor in state.items()}, base)
    run(tiny(f"backbone.weights={base}"), tmp_path / "sweep" / "first")
    run(tiny(f"backbone.weights={tmp_path / 'sweep' / 'first'}"), tmp_path / "sweep" / "second")
    return base


def test_a_base_that_was_moved_is_given_by_hand(based, tmp_path, pictures):
    paths = pictures(3)
    expected = load_model(tmp_path / "sweep" / "second", "cpu").predict_proba(paths)
    moved = tmp_path / "elsewhere.safetensors"
    shutil.move(based, moved)
    for name in ("first", "second"):  # the second needs the first, and that the file
        with pytest.raises(WeightsError, match=rf"what differs from {based}, which is gone -> .*--weights FILE, whose"):
            load_model(tmp_path / "sweep" / name, "cpu")
    assert np.array_equal(load_model(tmp_path / "sweep" / "second", "cpu", moved).predict_proba(paths), expected)
    other = tmp_path / "other.safetensors"
    save_file({key: tensor + 1 for key, tensor in load_file(moved).items()}, other)
    with pytest.raises(WeightsError, match=r"--weights: .*other.safetensors has sha256 \w+..., expected \w+"):
        load_model(tmp_path / "sweep" / "first", "cpu", other)
    with pytest.raises(WeightsError, match=r"--weights: no file .*nowhere"):
        load_model(tmp_path / "sweep" / "first", "cpu", tmp_path / "nowhere")


@pytest.mark.parametrize("verb", [["predict", "picture.png"], ["evaluate"], ["export"]], ids=lambda verb: verb[0])
def test_without_the_base_every_verb_says_so_at_once(based, tmp_path, verb):
    """Before torch is imported, and so within ten seconds wherever it runs."""
    Image.new("RGB", (8, 8)).save(tmp_path / "picture.png")
    based.unlink()
    program = (
        "import sys\nfrom tl_experiments.cli import main\n"
        f"sys.argv = ['tl', {verb[0]!r}, 'sweep/first', *{verb[1:]!r}]\n"
        "try: main()\nfinally: print('torch' in sys.modules)"
    )
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert time.perf_counter() - started < 10
    assert (done.returncode, done.stdout.splitlines()[-1]) == (2, "False")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: sweep/first/checkpoint.safetensors: ")
    assert str(based) in line
    assert "--weights FILE" in line


def test_a_base_of_the_hub_that_is_not_here(tiny, tmp_path, finished):
    """As on another machine, without network: what is needed, by name, hash and option."""
    folder = tmp_path / "run"
    shutil.copytree(finished("linear"), folder)
    facts = json.loads((folder / "checkpoint.json").read_text())
    source = "timm/test_resnet.r160_in1k/model.safetensors"
    facts |= {"holds": "trained", "base": {
        "weights": "pretrained", "beside": None, "source": source, "commit": "0" * 40, "sha256": "a" * 64,
    }}  # fmt: skip
    (folder / "checkpoint.json").write_text(json.dumps(facts))
    started = time.perf_counter()
    with pytest.raises(
        WeightsError, match=rf"{source}: .* is not on this disk .* -> .*--weights FILE, .* aaaaaaaaaaaa"
    ):
        load_model(folder, "cpu")
    assert time.perf_counter() - started < 10


def broken(folder, kind):
    path, side = folder / "checkpoint.safetensors", folder / "checkpoint.json"
    facts = json.loads(side.read_text())
    if kind == "no checkpoint":
        path.unlink()
    elif kind == "no class list":
        side.unlink()
    elif kind == "a list without classes":
        side.write_text(json.dumps({key: value for key, value in facts.items() if key != "classes"}))
    elif kind == "a flipped byte":
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    elif kind == "a foreign file":
        torch.save({"model": 1}, path)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no checkpoint", r"no checkpoint.safetensors -> run its job again with trainer.checkpoint=trained"),
        ("no class list", r"no checkpoint.json beside it: no classes, no preprocessing -> run its job again"),
        ("a list without classes", r"says nothing of classes -> another version wrote it"),
        ("a flipped byte", r"not the file that checkpoint.json describes \(sha256\)"),
        ("a foreign file", r"not the file that checkpoint.json describes \(sha256\)"),
    ],
)
def test_a_run_without_a_usable_model(finished, tmp_path, kind, message):
    shutil.copytree(finished("linear"), tmp_path / "run")
    broken(tmp_path / "run", kind)
    with pytest.raises(WeightsError, match=message):
        load_model(tmp_path / "run", "cpu")


def test_a_run_that_kept_no_weights(tiny, tmp_path):
    run(tiny("trainer.checkpoint=none"), tmp_path / "run")
    with pytest.raises(WeightsError, match=r"the run kept no weights \(trainer.checkpoint=none\) -> run its job again"):
        load_model(tmp_path / "run", "cpu")


def test_of_a_sweep_the_run_that_val_chose_is_loaded(finished, pictures, tmp_path):
    (tmp_path / "sweep").mkdir()
    for name in ("linear", "knn"):
        shutil.copytree(finished(name), tmp_path / "sweep" / name)
    entry = {"overrides": [], "state": "ok", "cause": None, "log": None, "seconds": 1.0}
    jobs = [{"id": name, **entry} for name in ("linear", "knn")]
    (tmp_path / "sweep" / "sweep.json").write_text(json.dumps({"plan": {}, "jobs": jobs}))
    chosen = winner(tmp_path / "sweep").folder
    paths = pictures(3)
    expected = load_model(chosen, "cpu").predict_proba(paths)
    model = load_model(tmp_path / "sweep", "cpu")
    assert np.array_equal(model.predict_proba(paths), expected)
    assert model.notes[0].startswith(f"Of {tmp_path / 'sweep'}, {chosen.name}: ")
    with pytest.raises(UserError, match="it is the folder of a sweep: give one of its jobs") as error:
        RunRecord.read(tmp_path / "sweep")
    assert "remove" not in str(error.value)


def test_other_folders_and_devices(tmp_path, finished):
    with pytest.raises(UserError, match=r"record.json: no readable record"):
        load_model(tmp_path, "cpu")
    with pytest.raises(ConfigError, match="--device: got 'tpu', expected one of auto, cpu, cuda"):
        load_model(finished("linear"), "tpu")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="--device: cuda, but torch sees no CUDA device -> --device auto"):
            load_model(finished("linear"), "cuda")
