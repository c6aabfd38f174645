"""What a checkpoint holds, the run's own model from it, and chains of runs."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Mapping

import pyarrow.parquet as pq
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from tests.backbones.conftest import COMMIT, hub_cache, publish  # noqa: F401  (fixtures)
from tests.training.test_freeze import HeadThenLastBlock
from tl_experiments import RunRecord
from tl_experiments.backbones.locate import weights_digest
from tl_experiments.errors import WeightsError
from tl_experiments.training.build import build
from tl_experiments.training.checkpoint import load_run
from tl_experiments.training.run import run
from tl_experiments.training.summary import weights_line
from tl_experiments.types import Phase


@pytest.fixture
def source(tmp_path):
    """Weights from elsewhere, for ``backbone.weights``: BatchNorm statistics are no default ones."""

    def make(name):
        torch.manual_seed(3)
        state = timm.create_model(name, num_classes=7).state_dict()
        for tensor in state.values():
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor) * 0.05)
        save_file({key: tensor.clone() for key, tensor in state.items()}, tmp_path / f"{name}.safetensors")
        return tmp_path / f"{name}.safetensors"

    return make


def stored_probabilities(folder, split):
    rows = [row for row in pq.read_table(folder / "predictions.parquet").to_pylist() if row["split"] == split]
    return torch.tensor([row["probabilities"] for row in rows], dtype=torch.float64)


def probabilities(model, cfg, split):
    """Of images in the order and batches of the run."""
    with torch.no_grad():
        logits = torch.cat([model(batch["image"]) for batch in build(cfg).data.eval_loader(split)])
    return logits.double().softmax(1)


def held(folder):
    return set(load_file(folder / "checkpoint.safetensors"))


STRATEGIES = {
    "probe": ["freeze_strategy=feature_extraction"],
    "last block": ["freeze_strategy=last_n_blocks", "freeze_strategy.n=1"],
    "last block, statistics frozen": [
        "freeze_strategy=last_n_blocks", "freeze_strategy.n=1", "freeze_strategy.norm_stats=frozen",
    ],
    "full": ["freeze_strategy=full"],
}  # fmt: skip


@pytest.mark.parametrize("kept", ["trained", "all"])
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("net", ["test_resnet", "test_vit"])
def test_a_run_reloads_to_the_bit(tiny, tmp_path, source, net, strategy, kept):
    weights = f"backbone.weights={source(net)}"
    size = f"backbone.preprocessing.image_size={32 if net == 'test_resnet' else 64}"
    cfg = tiny(
        "backbone=timm", f"backbone.name={net}", weights, size, f"trainer.checkpoint={kept}", *STRATEGIES[strategy]
    )
    run(cfg, tmp_path / "run")
    model = load_run(tmp_path / "run")
    assert not model.training
    for split in ("val", "test"):
        expected = stored_probabilities(tmp_path / "run", split)
        assert torch.equal(probabilities(model, cfg, split), expected)


def test_a_checkpoint_holds_what_could_change(tiny, tmp_path, source):
    weights = source("test_resnet")
    for name, overrides in STRATEGIES.items():
        run(tiny(f"backbone.weights={weights}", *overrides), tmp_path / name)
    assert held(tmp_path / "probe") == {"head.weight", "head.bias"}
    blocks = {"last block": True, "last block, statistics frozen": False}
    for name, statistics in blocks.items():
        backbone = held(tmp_path / name) - {"head.weight", "head.bias"}
        assert all(key.startswith("backbone.net.layer4.") for key in backbone)
        assert any(key.endswith("running_mean") for key in backbone) is statistics
    assert held(tmp_path / "full") == set(load_run(tmp_path / "full").state_dict())
    assert (tmp_path / "probe" / "checkpoint.safetensors").stat().st_size < 10_000


def test_a_base_from_the_hub_is_the_commit_of_the_run(tiny, tmp_path, publish, hub_cache):  # noqa: F811
    """The repository moved on since: the run's own revision is loaded, and another file under it refused."""
    publish("test_resnet")
    cfg = tiny("backbone.weights=pretrained")
    run(cfg, tmp_path / "run")
    assert held(tmp_path / "run") == {"head.weight", "head.bias"}
    repository = hub_cache / "models--timm--test_resnet.r160_in1k"
    (repository / "refs" / "main").write_text("f" * 40)
    shutil.copytree(repository / "snapshots" / COMMIT, repository / "snapshots" / ("f" * 40))
    newer = repository / "snapshots" / ("f" * 40) / "model.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(newer).items()}, newer)
    stored = stored_probabilities(tmp_path / "run", "test")
    assert torch.equal(probabilities(load_run(tmp_path / "run"), cfg, "test"), stored)
    shutil.copy(newer, repository / "snapshots" / COMMIT / "model.safetensors")
    with pytest.raises(WeightsError, match=r"r160_in1k/model.safetensors: not the file that a checkpoint is based"):
        load_run(tmp_path / "run")


def test_random_weights_have_no_base_and_everything_is_stored(tiny, tmp_path):
    cfg = tiny()
    run(cfg, tmp_path / "run")
    assert held(tmp_path / "run") == set(build(cfg).model.state_dict())
    assert torch.equal(
        probabilities(load_run(tmp_path / "run"), cfg, "test"), stored_probabilities(tmp_path / "run", "test")
    )


def test_none_writes_none_and_takes_an_older_one_away(tiny, tmp_path):
    run(tiny(), tmp_path / "run")
    run(tiny("trainer.checkpoint=none"), tmp_path / "run")
    assert not list((tmp_path / "run").glob("checkpoint.*"))
    with pytest.raises(WeightsError, match=r"0 checkpoints in .*run, expected one -> .*trainer.checkpoint"):
        load_run(tmp_path / "run")


@dataclasses.dataclass(frozen=True)
class Biases:
    """BitFit (Ben Zaken et al., 2022): the head and every bias."""

    norm_stats: str
    name: str = "biases"
    reinitialize_backbone: bool = False
    base_lr: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"adamw": 1e-2})

    def plan(self, layout):
        names = {name for name in layout.names() if name.endswith(".bias")} | set(layout.head.parameters)
        return (Phase(0.0, dict.fromkeys(sorted(names), 1.0), self.norm_stats),)


@pytest.mark.parametrize("strategy", [Biases("frozen"), Biases("update"), HeadThenLastBlock()], ids=str)
def test_tensors_all_over_the_net_and_several_phases(tiny, tmp_path, source, strategy):
    cfg = tiny(f"backbone.weights={source('test_resnet')}", "freeze_strategy=full")
    cfg = dataclasses.replace(cfg, freeze_strategy=strategy)
    run(cfg, tmp_path / "run")
    model = load_run(tmp_path / "run")
    assert torch.equal(probabilities(model, cfg, "test"), stored_probabilities(tmp_path / "run", "test"))
    biases = {name for name, _ in model.named_parameters() if name.endswith(".bias")}
    if strategy == Biases("frozen"):
        assert held(tmp_path / "run") == biases | {"head.weight"}
    elif strategy == Biases("update"):
        statistics = {name for name, _ in model.named_buffers() if "running" in name or "tracked" in name}
        assert held(tmp_path / "run") == biases | statistics | {"head.weight"}


def chain(tiny, tmp_path, weights):
    """Three runs, each from the last; the second trains a block, so that each checkpoint needs the one before."""
    steps = [["freeze_strategy=feature_extraction"], STRATEGIES["last block"], ["freeze_strategy=feature_extraction"]]
    records = []
    for number, overrides in enumerate(steps):
        cfg = tiny(f"backbone.weights={weights}", "dataset.shots=3", *overrides)
        records.append(run(cfg, tmp_path / "sweep" / str(number)))
        weights = tmp_path / "sweep" / str(number)
    return cfg, records


def test_a_chain_of_three(tiny, tmp_path, source):
    origin = source("test_resnet")
    cfg, records = chain(tiny, tmp_path, origin)
    folders = [tmp_path / "sweep" / str(number) for number in range(3)]
    assert held(folders[2]) == {"head.weight", "head.bias"}
    assert torch.equal(probabilities(load_run(folders[2]), cfg, "test"), stored_probabilities(folders[2], "test"))

    first, second, third = (record.weights["lineage"] for record in records)
    assert first == []
    assert [link["job_id"] for link in third] == [record.job_id for record in records[:2]]
    assert second == third[:1]
    assert [link["freeze_strategy"] for link in third] == ["feature_extraction", "last_n_blocks(n=1)"]
    assert {link["dataset"] for link in third} == {"digits, 3 shots"}
    assert [link["source"] for link in third] == [str(origin), str(folders[0] / "checkpoint.safetensors")]
    assert third[1]["sha256"] == json.loads((folders[0] / "checkpoint.json").read_text())["sha256"]
    assert records[2].weights["source"] == str(folders[1] / "checkpoint.safetensors")
    spent = math.fsum(record.wall_clock_s for record in records[:2])
    assert records[2].pretraining_s == pytest.approx(spent, abs=1e-9)
    assert RunRecord.read(folders[2]).weights == records[2].weights


def test_continuing_takes_the_backbone_and_a_new_head(tiny, tmp_path, source):
    cfg = tiny(f"backbone.weights={source('test_resnet')}", *STRATEGIES["last block"])
    run(cfg, tmp_path / "run")
    trained = load_run(tmp_path / "run")
    start = build(tiny(f"backbone.weights={tmp_path / 'run'}")).model
    fresh = build(cfg).model
    state = start.backbone.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in trained.backbone.state_dict().items())
    assert torch.equal(start.head.weight, fresh.head.weight)
    assert not torch.equal(start.head.weight, trained.head.weight)


def test_outputs_that_were_moved_as_a_whole_still_load(tiny, tmp_path, source):
    cfg, _ = chain(tiny, tmp_path, source("test_resnet"))
    at_new_place = dataclasses.replace(cfg, backbone=dataclasses.replace(cfg.backbone, weights="random"))
    (tmp_path / "elsewhere").mkdir()
    for name in ("sweep", "test_resnet.safetensors"):
        shutil.move(tmp_path / name, tmp_path / "elsewhere" / name)
    folder = tmp_path / "elsewhere" / "sweep" / "2"
    assert torch.equal(probabilities(load_run(folder), at_new_place, "test"), stored_probabilities(folder, "test"))


@pytest.mark.parametrize("broken", [0, "origin"])
def test_a_base_that_is_gone_or_changed_is_named(tiny, tmp_path, source, broken):
    origin = source("test_resnet")
    chain(tiny, tmp_path, origin)
    path = origin if broken == "origin" else tmp_path / "sweep" / str(broken) / "checkpoint.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=rf"{path}: not the file that .* \(?sha256"):
        load_run(tmp_path / "sweep" / "2")
    with pytest.raises(WeightsError, match=rf"{path}: not the file that"):
        weights_digest(str(tmp_path / "sweep" / "2"))  # when a sweep is planned
    path.unlink()
    with pytest.raises(WeightsError, match=rf"what differs from {path}, which is gone -> put that file back"):
        load_run(tmp_path / "sweep" / "2")


def test_a_checkpoint_that_holds_everything_needs_no_base(tiny, tmp_path, source):
    origin = source("test_resnet")
    cfg = tiny(f"backbone.weights={origin}", "trainer.checkpoint=all")
    run(cfg, tmp_path / "run")
    at_rest = build(cfg)
    origin.unlink()
    state = load_run(tmp_path / "run").state_dict()
    frozen = {name: t for name, t in at_rest.model.state_dict().items() if not name.startswith("head.")}
    assert all(torch.equal(state[name], tensor) for name, tensor in frozen.items())


def test_the_log_says_where_weights_are_from_and_what_became_of_them(tiny, tmp_path, source):
    origin = source("test_vit")
    overrides = ["backbone=timm", "backbone.name=test_vit", "backbone.preprocessing.image_size=64"]
    cfg = tiny(*overrides, f"backbone.weights={origin}")
    parts = build(cfg)
    n = len(parts.model.backbone.net.state_dict())
    assert weights_line(parts.weights) == (
        f"{origin}: {n} of {n} tensors matched, 2 of the source's classifier dropped, 1 resized"
    )
    assert parts.notes == ("The weights were resized to this input: pos_embed from 10x10 to 4x4.",)
    run(cfg, tmp_path / "run")
    again = build(tiny(*overrides, f"backbone.weights={tmp_path / 'run'}"))
    assert weights_line(again.weights) == (
        f"{tmp_path / 'run' / 'checkpoint.safetensors'}: {n} of {n} tensors matched, after 1 own run"
    )
    assert weights_line(build(tiny()).weights) == "random"
