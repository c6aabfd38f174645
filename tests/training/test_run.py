"""``run``: the same twice, the record whole, what went wrong named."""

from __future__ import annotations

import dataclasses
import json

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score, f1_score, log_loss

from tl_experiments import RunRecord
from tl_experiments.errors import ConfigError, DivergedError
from tl_experiments.training.build import build
from tl_experiments.training.run import layout, run


@pytest.mark.parametrize("strategy", ["feature_extraction", "full"])
def test_two_runs_write_equal_metrics(tiny, tmp_path, strategy):
    cfg = tiny(f"freeze_strategy={strategy}", "augmentation=flip_crop")
    one, two = (run(cfg, tmp_path / name) for name in ("one", "two"))
    assert one.metrics == two.metrics
    lines = [[json.loads(line) for line in (tmp_path / name / "metrics.jsonl").open()] for name in ("one", "two")]
    for first, second in zip(*lines, strict=True):
        assert {**first, "seconds": 0} == {**second, "seconds": 0}
    first, second = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("one", "two"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_seeds_differ_and_arms_share_their_start(tiny):
    parts = {key: build(tiny(f"freeze_strategy={key[0]}", f"seed={key[1]}")) for key in (("full", 0), ("full", 1))}
    probe = build(tiny("seed=0"))
    assert torch.equal(parts["full", 0].model.head.weight, probe.model.head.weight)  # the same start for every arm
    assert not torch.equal(parts["full", 0].model.head.weight, parts["full", 1].model.head.weight)
    assert parts["full", 0].data.item_ids("train") == probe.data.item_ids("train")  # and the same few labels


def test_the_record_is_whole_and_reads_back(tiny, tmp_path):
    cfg = tiny("freeze_strategy=last_n_blocks", "freeze_strategy.n=1")
    record = run(cfg, tmp_path)
    assert RunRecord.read(tmp_path) == dataclasses.replace(record, config=json.loads(json.dumps(record.config)))
    assert record.arm == {
        "dataset": "digits, 2 shots",
        "backbone": "test_resnet (random)",
        "head": "linear",
        "freeze_strategy": "last_n_blocks(n=1)",
    }
    assert record.data["sizes"] == {"train": 20, "val": 20, "test": 359}
    assert record.data["labels_spent"] == 40
    assert record.trained_parameters == 267_840 + 96 * 10 + 10
    assert record.learning_rate == cfg.base_lr()
    assert record.wall_clock_s > 0
    assert record.peak_memory_bytes > 1e8
    assert record.environment["packages"]["torch"] == torch.__version__.split("+")[0]


def test_numbers_can_be_recomputed_from_the_stored_predictions(tiny, tmp_path):
    record = run(tiny(), tmp_path)
    table = pq.read_table(tmp_path / "predictions.parquet").to_pylist()
    for split, size in (("val", 20), ("test", 359)):
        rows = [row for row in table if row["split"] == split]
        assert len({row["item"] for row in rows}) == len(rows) == size
        labels, predictions = ([row[key] for row in rows] for key in ("label", "prediction"))
        assert record.metrics[split]["accuracy"] == pytest.approx(accuracy_score(labels, predictions), abs=1e-6)
        macro = f1_score(labels, predictions, average="macro")
        assert record.metrics[split]["macro_f1"] == pytest.approx(macro, abs=1e-6)
        nll = log_loss(labels, [row["probabilities"] for row in rows], labels=list(record.classes))
        assert record.metrics[split]["nll"] == pytest.approx(nll, abs=1e-6)


def test_the_checkpoint_is_the_model_that_was_tested(tiny, tmp_path):
    cfg = tiny("freeze_strategy=full")
    run(cfg, tmp_path)
    parts = build(cfg)
    parts.model.load_state_dict(load_file(tmp_path / "checkpoint.safetensors"))
    parts.model.eval()
    rows = [row for row in pq.read_table(tmp_path / "predictions.parquet").to_pylist() if row["split"] == "test"]
    with torch.no_grad():
        logits = torch.cat([parts.model(batch["image"]) for batch in parts.data.eval_loader("test")])
    probabilities = torch.tensor([row["probabilities"] for row in rows])
    assert torch.allclose(logits.softmax(1), probabilities.float(), atol=1e-6)


def test_a_diverging_run_is_stopped_at_its_step_and_leaves_no_record(tiny, tmp_path):
    cfg = tiny("freeze_strategy=full", "optimizer=sgd", "optimizer.lr=1e18", "trainer.gradient_clip_norm=null")
    with pytest.raises(DivergedError, match=r"not finite at step \d+ -> lower optimizer.lr"):
        run(cfg, tmp_path)
    assert not (tmp_path / "record.json").exists()


def test_a_gpu_that_is_not_there(tiny, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"trainer.accelerator: gpu, but torch sees no CUDA device"):
        run(tiny("trainer.accelerator=gpu"))


@pytest.mark.parametrize(
    "overrides", [["trainer.batch_size=19"], ["trainer.batch_size=1000"], ["trainer.batch_size=3"]]
)
def test_batches_that_batchnorm_could_not_train_on(tiny, tmp_path, overrides):
    """A last batch of one image, fewer images than a batch: handled, and said where it matters."""
    record = run(tiny("freeze_strategy=full", "trainer.max_epochs=1", *overrides), tmp_path)
    assert (
        sum(phase["steps"] for phase in record.phases) == {19: 1, 1000: 1, 3: 7}[record.config["trainer"]["batch_size"]]
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_precision_is_bf16_and_frozen_stays_frozen(tiny, tmp_path):
    record = run(tiny("trainer.accelerator=gpu", "freeze_strategy=last_n_blocks", "freeze_strategy.n=1"), tmp_path)
    assert record.environment["precision"] == "bf16-mixed"
    assert record.environment["device"] == torch.cuda.get_device_name()


def test_blocks_from_the_module_tree_are_noted_in_record_and_table(tiny, tmp_path):
    kwargs = "{base_dims: [8, 8, 8], depth: [1, 1, 1], heads: [1, 2, 2]}"
    cfg = tiny("backbone=timm", "backbone.name=pit_ti_224", f"backbone.kwargs={kwargs}")
    note = "timm names no blocks for PoolingVisionTransformer: its blocks are taken from its module tree "
    assert f"note: {note}" in layout(cfg)
    assert [text for text in run(cfg, tmp_path).notes if text.startswith(note)]


@pytest.mark.parametrize("strategy", ["feature_extraction", "lp_ft"])
def test_bf16_passes_the_audit_and_learns_what_fp32_learns(tiny, tmp_path, strategy):
    """On a CPU too, by autocast: weights stay in fp32, so small steps are not lost."""
    overrides = [f"freeze_strategy={strategy}", "dataset.shots=5", "trainer.max_epochs=4"]
    half = run(tiny(*overrides, "trainer.precision=bf16-mixed"), tmp_path / "bf16")
    full = run(tiny(*overrides, "trainer.precision=32-true"), tmp_path / "fp32")
    assert half.environment["precision"] == "bf16-mixed"
    assert half.metrics["val"]["nll"] == pytest.approx(full.metrics["val"]["nll"], rel=0.03)
    assert all(t.dtype != torch.bfloat16 for t in load_file(tmp_path / "bf16" / "checkpoint.safetensors").values())
