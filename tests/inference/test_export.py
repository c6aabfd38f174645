"""``tl export``: what it writes gives the run's outputs in other programs, and is not called done otherwise."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tl_experiments import load_model, load_run
from tl_experiments.cli import main
from tl_experiments.commands import exporting
from tl_experiments.data.sources import divide, open_source
from tl_experiments.errors import ConfigError, WeightsError
from tl_experiments.inference import export as export_module
from tl_experiments.inference import exported, onnx_file
from tl_experiments.inference.dataset import chosen_dataset
from tl_experiments.inference.export import export
from tl_experiments.records import RunRecord

onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
pytest.importorskip("onnxscript", reason="the extra onnx is not installed")

FILES = {"safetensors": "model.safetensors", "torch_export": "model.pt2", "onnx": "model.onnx"}


@pytest.fixture
def copied(finished, tmp_path):
    """A finished run of one's own, to write into."""

    def copy(name):
        return shutil.copytree(finished(name), tmp_path / "run", ignore=shutil.ignore_patterns("export"))

    return copy


NETS = ["full", "vit", "knn", "mlp", "cosine", "attention_pool"]


@pytest.fixture(scope="session")
def done(finished, tmp_path_factory):
    """``done("knn")``: a copy of a run, exported in every format once; nobody may change it."""
    folder = tmp_path_factory.mktemp("exported")

    def make(name):
        if not (folder / name).exists():
            shutil.copytree(finished(name), folder / name)
            outcome = export(folder / name)
            assert (set(outcome.checks), outcome.failed, outcome.notes) == (set(FILES), {}, ())
        return folder / name

    return make


def sixty_four_images(folder):
    """Test images of the run, prepared by its model, uint8."""
    record, model = RunRecord.read(folder), load_model(folder, "cpu")
    dataset = chosen_dataset(record.config, [])
    source = open_source(dataset)
    items = divide(source, dataset, record.seed).used.indices["test"][:64]
    return torch.stack([model.prepare(source.load(int(item))) for item in items])


@pytest.mark.parametrize("name", NETS)
def test_every_format_gives_the_logits_of_the_run(done, name):
    folder = done(name)
    images = sixty_four_images(folder)
    with torch.no_grad():
        expected = load_run(folder)(images)
    session = onnxruntime.InferenceSession(folder / "export" / "model.onnx", providers=["CPUExecutionProvider"])
    again = torch.export.load(folder / "export" / "model.pt2").module()
    outputs = {"onnx": torch.from_numpy(session.run(["logits"], {"image": images.numpy()})[0]), "pt2": again(images)}
    for logits in outputs.values():
        assert torch.equal(logits.argmax(1), expected.argmax(1))
        assert (logits - expected).abs().max() <= 1e-4
    one = session.run(None, {"image": images[:1].numpy()})[0]  # any number of images
    np.testing.assert_allclose(one, expected[:1], atol=1e-4)
    whole = load_file(folder / "export" / "model.safetensors")
    state = load_run(folder).state_dict()
    assert whole.keys() == state.keys()
    assert all(torch.equal(whole[key], state[key]) for key in state)


def test_the_description_says_what_it_is(done):
    folder = done("full")
    about = json.loads((folder / "export" / "model.json").read_text())
    record = RunRecord.read(folder)
    assert about["classes"] == list(record.classes)
    assert about["takes"] == {"name": "image", "dtype": "uint8", "shape": ["n", 3, 32, 32]}
    assert about["preprocessing"] == {
        "colours": "RGB", "resize_short_side": 33, "interpolation": "bilinear", "center_crop": 32,
        "inside_the_model": {"divide_by": 255, "mean": [0.5] * 3, "std": [0.5] * 3},
    }  # fmt: skip
    assert about["weights"]["licence"] == "trained from random weights"
    for name, entry in about["files"].items():
        content = (folder / "export" / FILES[name]).read_bytes()
        assert entry["sha256"] == hashlib.sha256(content).hexdigest()
        assert entry["checked"]["images"] == "test images of the run"
        assert entry["checked"]["compared"] == 64
        assert entry["checked"]["max_probability_difference"] <= 1e-4
    assert {path.name for path in (folder / "export").iterdir()} == {"model.json", *FILES.values()}
    model = onnx.load(folder / "export" / "model.onnx")
    onnx.checker.check_model(model)
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(properties["classes"]) == list(record.classes)
    assert json.loads(properties["preprocessing"]) == about["preprocessing"]
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]
    (given,) = model.graph.input
    assert (given.name, given.type.tensor_type.elem_type) == ("image", onnx.TensorProto.UINT8)
    n, *rest = given.type.tensor_type.shape.dim
    assert n.dim_param
    assert [dim.dim_value for dim in rest] == [3, 32, 32]


def test_formats_come_one_by_one_and_a_new_checkpoint_takes_the_old_away(copied, tiny):
    from tl_experiments import run

    folder = copied("linear")
    export(folder, ["torch_export"])
    export(folder, ["safetensors"])
    files = json.loads((folder / "export" / "model.json").read_text())["files"]
    assert files.keys() == {"torch_export", "safetensors"}
    run(tiny("head=ridge"), folder)
    export(folder, ["safetensors"])
    files = json.loads((folder / "export" / "model.json").read_text())["files"]
    assert files.keys() == {"safetensors"}


@pytest.mark.parametrize("other", ["model.onnx", "model.safetensors"])
@pytest.mark.parametrize("name", ["full", "attention_pool", "knn"])
def test_an_exported_folder_predicts_like_the_run(done, pictures, tmp_path, capfd, monkeypatch, name, other):
    """By ONNX; by safetensors where there is no ONNX file."""
    folder = done(name)
    paths = pictures(30)
    paths[3].write_bytes(b"")
    shutil.copytree(folder / "export", tmp_path / "elsewhere")
    about = json.loads((tmp_path / "elsewhere" / "model.json").read_text())
    about["files"] = {key: entry for key, entry in about["files"].items() if entry["file"] == other}
    (tmp_path / "elsewhere" / "model.json").write_text(json.dumps(about))
    tables = []
    for model in (folder, tmp_path / "elsewhere"):
        output = tmp_path / f"{model.name}.csv"
        arguments = ["--probabilities", "--output", output, "--device", "cpu"]
        monkeypatch.setattr(sys, "argv", ["tl", "predict", *map(str, [model, tmp_path / "pictures", *arguments])])
        with pytest.raises(SystemExit, match="1"):
            main()
        tables.append(list(csv.DictReader(output.open())))
    ours, theirs = tables
    for key in ("path", "prediction", "error"):
        assert [row[key] for row in ours] == [row[key] for row in theirs]
    for key in ("probability", *(f"p({label})" for label in range(10))):
        np.testing.assert_allclose(*([float(row[key] or 0) for row in rows] for rows in tables), atol=1e-5)


def test_what_differs_from_the_model_is_not_written(copied, monkeypatch, capfd):
    """A format that computes something else, and one that cannot be made: the others are written, exit code 1."""
    folder = copied("full")
    honest = export_module._MAKERS["onnx"]

    def wrong(model, about):
        data, logits = honest(model, about)
        return data, lambda images: logits(images) * 1.1

    def broken(model, about):
        raise RuntimeError("no such operator\nand a long story")

    monkeypatch.setattr(export_module, "_MAKERS", export_module._MAKERS | {"onnx": wrong, "torch_export": broken})
    monkeypatch.setattr(sys, "argv", ["tl", "export", str(folder)])
    with pytest.raises(SystemExit, match="1"):
        main()
    out, err = capfd.readouterr()
    assert out.startswith(f"{folder / 'export' / 'model.safetensors'}: equal classes on 64 images")
    first, second = err.splitlines()
    assert first == "error: torch_export: not written: no such operator -> use another format"
    assert second.startswith(
        "error: onnx: not written: check: another class on 0 of 64 images, probabilities differ by"
    )
    assert {path.name for path in (folder / "export").iterdir()} == {"model.json", "model.safetensors"}


def test_without_its_images_it_is_checked_on_noise(tiny, tmp_path, pictures):
    from tl_experiments import run

    for split in ("train", "val", "test"):
        for name in ("a", "b"):
            pictures(3, f"{split}-{name}")
            (tmp_path / "data" / split).mkdir(parents=True, exist_ok=True)
            (tmp_path / f"{split}-{name}").rename(tmp_path / "data" / split / name)
    cfg = tiny("dataset=image_folder", f"dataset.root={tmp_path / 'data'}")
    run(cfg, tmp_path / "run")
    outcome = export(tmp_path / "run", ["safetensors"])
    assert (outcome.checks["safetensors"]["compared"], outcome.notes) == (6, ())
    shutil.rmtree(tmp_path / "data")
    outcome = export(tmp_path / "run", ["safetensors"])
    assert outcome.checks["safetensors"]["compared"] == 64
    assert outcome.notes[0].startswith("Checked on noise, since the run's images cannot be read (dataset.root: ")


def test_the_extra_is_named(copied, done, monkeypatch):
    folder = copied("full")
    shutil.copytree(done("full") / "export", folder / "export")
    (folder / "export" / "model.safetensors").unlink()
    absent = lambda needed=onnx_file.PACKAGES: list(needed)  # noqa: E731
    for module in (export_module, exported, onnx_file):
        monkeypatch.setattr(module, "missing_packages", absent)
    match = r"onnxruntime not installed -> pip install 'tl-experiments\[onnx\]'"
    with pytest.raises(
        ConfigError, match=r"onnx, onnxruntime, onnxscript not installed -> pip install 'tl-exp.*\[onnx"
    ):
        export(folder, ["onnx"])
    about = json.loads((folder / "export" / "model.json").read_text())
    only_onnx = {**about, "files": {"onnx": about["files"]["onnx"]}}
    (folder / "export" / "model.json").write_text(json.dumps(only_onnx))
    with pytest.raises(ConfigError, match=match):
        load_model(folder / "export", "cpu")
    outcome = export(folder)
    assert (set(outcome.checks), len(outcome.notes)) == ({"safetensors", "torch_export"}, 1)
    assert load_model(folder / "export", "cpu").classes == tuple(str(label) for label in range(10))  # the other file


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda folder: (folder / "model.onnx").write_bytes(b"x"),
            r"model.onnx: not the file that model.json describes",
        ),
        (lambda folder: (folder / "model.onnx").unlink(), r"model.onnx: not the file that model.json describes"),
        (lambda folder: (folder / "model.json").write_text("{"), r"model.json: not readable"),
        (lambda folder: (folder / "model.json").write_text("[]"), r"model.json: not readable"),
        (lambda folder: (folder / "model.json").write_text('{"format_version": 9}'), r"format version 9, expected 1"),
        (lambda folder: (folder / "model.json").write_text('{"format_version": 1}'), r"says nothing of backbone, "),
    ],
)
def test_a_damaged_export_is_named(done, tmp_path, change, message):
    folder = shutil.copytree(done("full") / "export", tmp_path / "export")
    change(folder)
    with pytest.raises(WeightsError, match=message):
        load_model(folder, "cpu")


def test_a_pt2_file_is_never_read(copied, monkeypatch):
    folder = copied("linear")
    export(folder, ["torch_export"])
    monkeypatch.setattr(torch.export, "load", None)
    with pytest.raises(WeightsError, match="no ONNX or safetensors file -> tl export RUN --format onnx safetensors"):
        load_model(folder / "export", "cpu")


def test_a_run_on_real_weights(shared_data, tmp_path, tiny):
    """MobileNetV2 under a logistic probe: 64 satellite images through onnxruntime."""
    from tl_experiments import run

    weights = shared_data / "weights" / "tf_mobilenetv2_100_in1k.safetensors"
    cfg = tiny(
        "backbone=timm", "backbone.name=mobilenetv2_100", f"backbone.weights={weights}", "head=logistic",
        "backbone.kwargs.pad_type=same", "backbone.kwargs.bn_eps=1e-3", "backbone.preprocessing.image_size=64",
        "dataset=image_folder", f"dataset.root={shared_data / 'eurosat'}", "dataset.shots=5",
    )  # fmt: skip
    run(cfg, tmp_path / "run")
    images = sixty_four_images(tmp_path / "run")
    with torch.no_grad():
        expected = load_run(tmp_path / "run")(images)
    outcome = export(tmp_path / "run", ["onnx", "safetensors"])
    assert (set(outcome.checks), outcome.failed) == ({"onnx", "safetensors"}, {})
    path = tmp_path / "run" / "export" / "model.onnx"
    logits = onnxruntime.InferenceSession(path).run(None, {"image": images.numpy()})[0]
    assert np.array_equal(logits.argmax(1), expected.argmax(1))
    # Logits go up to 20 here, where 32 bits alone are 1e-4 away from 64: probabilities are what must agree
    np.testing.assert_allclose(torch.from_numpy(logits).double().softmax(1), expected.double().softmax(1), atol=1e-4)
    about = json.loads((tmp_path / "run" / "export" / "model.json").read_text())
    assert about["weights"]["licence"] == "unknown: see where the weights come from"
    assert len(about["weights"]["sha256"]) == 64


def test_how_several_formats_are_given_is_said(tmp_path):
    with pytest.raises(
        ConfigError, match=r"got 'onnx,safetensors', .*; several with blanks: --format safetensors onnx"
    ):
        exporting.main([str(tmp_path), "--format", "onnx,safetensors"])
