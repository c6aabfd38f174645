"""A signal ends a run at the step in progress, and the same run goes on from there, to the bit."""

from __future__ import annotations

import contextlib
import os
import signal

import pytest

from tests.training.test_resume import assert_equal, ends, three_phases
from tl_experiments import interrupt
from tl_experiments.data import dataset
from tl_experiments.features.activations import Activations
from tl_experiments.interrupt import Interrupted
from tl_experiments.objectives.supervised import SupervisedObjective
from tl_experiments.training.module import TransferModule
from tl_experiments.training.run import run


def signalled(cfg, folder, monkeypatch, signum, *, loss=None, evaluation=None):
    """Run until a signal comes in the forward pass of so many losses or evaluation batches; None where it is done."""
    count = {"loss": 0, "evaluation": 0}

    def counting(key, method, at):
        def counted(*arguments):
            if count[key] == at:
                os.kill(os.getpid(), signum)
            count[key] += 1
            return method(*arguments)

        return counted

    with monkeypatch.context() as patch, interrupt.installed():
        patch.setattr(SupervisedObjective, "loss", counting("loss", SupervisedObjective.loss, loss))
        patch.setattr(TransferModule, "validation_step", counting("evaluation", TransferModule._collect, evaluation))
        patch.setattr(TransferModule, "test_step", counting("evaluation", TransferModule._collect, evaluation))
        with contextlib.suppress(Interrupted):
            return run(cfg, folder)
    return None


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The uninterrupted run of each variant, made once."""
    made = {}

    def make(key, cfg):
        if key not in made:
            folder = tmp_path_factory.mktemp("whole")
            made[key] = ends(folder, run(cfg, folder))
        return made[key]

    return make


RARE = "trainer.resume_interval_s=1e9"  # what a signal writes is all there is


# In an epoch, at its end; before, at and after the changes of phase at 5 and 12; the first step and the last
@pytest.mark.parametrize("step", [0, 1, 2, 4, 5, 11, 12, 13, 23])
def test_at_any_step_it_ends_there_and_goes_on_there(tiny, tmp_path, monkeypatch, whole, step):
    cfg = three_phases(tiny, RARE)
    assert signalled(cfg, tmp_path, monkeypatch, signal.SIGTERM, loss=step) is None
    assert [path.name for path in tmp_path.glob("resume-*.pt")] == [f"resume-{step + 1:08d}.pt"]
    record, steps = counted(cfg, tmp_path, monkeypatch)
    assert steps == 24 - (step + 1)
    assert_equal(ends(tmp_path, record), whole("plain", cfg))


@pytest.mark.parametrize("batch", [0, 1, 4, 5, 9, 10])
@pytest.mark.parametrize("overrides", [[], ["trainer.ema_decay=0.8"]], ids=["plain", "ema"])
def test_in_a_validation_or_the_test(tiny, tmp_path, monkeypatch, whole, batch, overrides):
    """After the chunks 3, 5, 6, 9, 12, at the start of the last phase, after 15, 18, 21, 24; then test."""
    cfg = three_phases(tiny, RARE, *overrides)
    assert signalled(cfg, tmp_path, monkeypatch, signal.SIGUSR1, evaluation=batch) is None
    record, _ = counted(cfg, tmp_path, monkeypatch)
    assert_equal(ends(tmp_path, record), whole(tuple(overrides), cfg))


@pytest.mark.parametrize(
    "overrides",
    [
        ["trainer.ema_decay=0.8"],
        ["optimizer=sgd", "optimizer.lr=0.01", "scheduler=one_cycle"],
        ["trainer.early_stopping_patience=1", "trainer.accumulation=2"],
        ["augmentation=mixup"],
    ],
    ids=lambda overrides: overrides[0],
)
def test_every_few_steps_with_every_kind_of_state(tiny, tmp_path, monkeypatch, whole, overrides):
    cfg = three_phases(tiny, RARE, *overrides)
    record, signals = None, 0
    while record is None:
        record = signalled(cfg, tmp_path, monkeypatch, signal.SIGINT, loss=3 * cfg.trainer.accumulation)
        signals += record is None
    assert signals >= 3
    assert_equal(ends(tmp_path, record), whole(overrides[0], cfg))


def counted(cfg, folder, monkeypatch):
    """The record of the run, and how many steps it took now."""
    steps = 0
    loss = SupervisedObjective.loss

    def counting(self, model, batch):
        nonlocal steps
        steps += 1
        return loss(self, model, batch)

    with monkeypatch.context() as patch:
        patch.setattr(SupervisedObjective, "loss", counting)
        return run(cfg, folder), steps


@pytest.mark.parametrize("hook", ["_end_if_asked", "on_train_batch_start", "on_validation_epoch_end"])
def test_between_our_hooks_too_lightning_does_not_end_the_process(tiny, tmp_path, monkeypatch, hook):
    """Its own handler of SIGTERM leads to ``sys.exit`` at places where no resume point is written."""
    cfg = three_phases(tiny, RARE)
    theirs = getattr(TransferModule, hook)

    def signalling(self, *arguments):
        result = theirs(self, *arguments)
        if self.step in (4, 5):  # in the chunk from 3 to 5, and at its end
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    with monkeypatch.context() as patch, interrupt.installed():
        patch.setattr(TransferModule, hook, signalling)
        with pytest.raises(Interrupted, match=r"SIGTERM after step \d+ of 24"):
            run(cfg, tmp_path)
    assert list(tmp_path.glob("resume-*.pt"))


@pytest.mark.parametrize("overrides", [[], ["trainer.ema_decay=0.8"]], ids=["plain", "ema"])
def test_while_a_split_is_decoded(tiny, tmp_path, monkeypatch, whole, overrides):
    """Val, at the first validation: it does not wait for the rest of it."""
    cfg = three_phases(tiny, RARE, *overrides)
    decode, decoded = dataset.decode, []

    def signalling(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        decoded.append(decode(*arguments))
        return decoded[-1]

    with monkeypatch.context() as patch, interrupt.installed():
        patch.setattr(dataset, "decode", signalling)
        with pytest.raises(Interrupted, match="after step 3 of 24"):
            run(cfg, tmp_path)
    assert decoded == []
    record, _ = counted(cfg, tmp_path, monkeypatch)
    assert_equal(ends(tmp_path, record), whole(tuple(overrides), cfg))


def test_while_features_are_made(tiny, tmp_path, monkeypatch):
    """Of the test images, with training behind it: nothing of that is done again."""
    cfg = tiny("freeze_strategy=last_n_blocks", "freeze_strategy.n=1", RARE)
    encode, ready = Activations._encode, []

    def signalling(self, indices):
        if ready:
            os.kill(os.getpid(), signal.SIGTERM)
        return encode(self, indices)

    with monkeypatch.context() as patch, interrupt.installed():
        patch.setattr(Activations, "_encode", signalling)
        patch.setattr(TransferModule, "on_train_end", lambda _module: ready.append(True))
        with pytest.raises(Interrupted, match="after step 6 of 6"):
            run(cfg, tmp_path / "interrupted")
    record, steps = counted(cfg, tmp_path / "interrupted", monkeypatch)
    assert steps == 0
    assert record.metrics == run(cfg, tmp_path / "whole").metrics


def test_a_second_signal_raises_unless_a_cluster_repeats_it(monkeypatch):
    monkeypatch.setattr(interrupt, "_ECHO_S", 0.0)
    with interrupt.installed():
        interrupt.install((signal.SIGUSR1, signal.SIGTERM), insist=False)
        for signum in (signal.SIGUSR1, signal.SIGTERM):
            os.kill(os.getpid(), signum)
        assert interrupt.requested() == signal.SIGUSR1
        interrupt.install((signal.SIGUSR1,))
        os.kill(os.getpid(), signal.SIGUSR1)
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGUSR1)


def test_what_a_launcher_repeats_is_one_signal(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(interrupt.time, "monotonic", lambda: now[0])
    with interrupt.installed():
        for now[0] in (100.0, 100.1, 100.4):
            os.kill(os.getpid(), signal.SIGTERM)
        assert interrupt.requested() == signal.SIGTERM
        now[0] = 100.6
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGTERM)
