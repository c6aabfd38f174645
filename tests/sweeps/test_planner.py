"""What a sweep shares and costs, counted by hand; prices that are measured, remembered and learnt."""

from __future__ import annotations

import json
import re

import pytest
from PIL import Image

from tests.conftest import TINY
from tl_experiments.cli import main
from tl_experiments.records import RunRecord
from tl_experiments.sweeps.costs import CostBook, Price
from tl_experiments.sweeps.jobs import Job
from tl_experiments.sweeps.planner import learn, make_plan, table, unpriced
from tl_experiments.sweeps.sweep import run_sweep
from tl_experiments.sweeps.tasks import make_tasks
from tl_experiments.training import preflight
from tl_experiments.training.groups import source_key
from tl_experiments.training.identity import job_id
from tl_experiments.training.preflight import Datasets


@pytest.fixture
def job(tiny):
    def make(*overrides):
        config = tiny("backbone.weights=pretrained", *overrides)
        return Job(job_id(config), overrides, config)

    return make


@pytest.fixture
def book(tmp_path):
    return CostBook(tmp_path / "costs.json", "cpu", 1)


@pytest.fixture
def photos(tmp_path):
    """12 images of two classes: 8 to train on, 2 each for val and test."""
    for number in range(12):
        path = tmp_path / "photos" / ("ants", "bees")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (number, 9, 9)).save(path)
    return ["dataset=image_folder", f"dataset.root={tmp_path / 'photos'}", "dataset.shots=null"]


PARTIAL = ["freeze_strategy=last_n_blocks", "freeze_strategy.n=1", "trainer.max_epochs=3"]


def test_an_image_is_decoded_once_and_encoded_once_a_prefix(job, book, photos):
    probes = [job(*photos, f"seed={seed}") for seed in (0, 1)]
    partial = [job(*photos, *PARTIAL, f"seed={seed}") for seed in (0, 1)]
    full = job(*photos, "freeze_strategy=full", "backbone.preprocessing.image_size=64")
    jobs = [full, *partial, *probes]
    plan = make_plan(make_tasks(jobs, jobs, []), Datasets(), book, 1)
    assert [len(task.jobs) for task in plan.tasks] == [2, 1, 1, 1]
    assert [cost.decoded for cost in plan.costs] == [12, 0, 0, 0]
    assert [cost.encoded for cost in plan.costs] == [12, 12, 0, 0]
    assert plan.costs[0].cache_bytes is None  # bytes of an activation are not known yet
    assert plan.total.seconds is None
    assert plan.costs[3].cache_bytes == 0
    assert table(plan).splitlines()[-1].split()[1:5] == ["4", "5", "12", "24"]


def test_seconds_and_bytes_follow_from_prices(job, book, photos):
    probe, partial = job(*photos), job(*photos, *PARTIAL)
    book.learn_decoding(source_key(probe.config.dataset), 0.5)
    book.learn(probe.config, Price(train_s=0.0, encode_s=1.0, row_bytes=100, image_size=32))
    book.learn(partial.config, Price(train_s=3.0, encode_s=2.0, row_bytes=1000, image_size=32))
    jobs = [partial, probe]
    plan = make_plan(make_tasks(jobs, jobs, []), Datasets(), book, 1)
    pixels = 3 * 32 * 32
    assert plan.costs[0].seconds == pytest.approx(12 * 0.5 + 12 * 1.0)
    assert plan.costs[0].cache_bytes == 12 * (pixels + 100)
    sizes = {split: len(indices) for split, indices in Datasets().used(probe.config).items()}
    visits = 3 * sizes["train"] + (3 * sizes["val"] + sizes["test"]) / 3
    assert plan.costs[1].seconds == pytest.approx(12 * 2.0 + visits * 3.0)
    assert plan.costs[1].cache_bytes == 12 * 1000
    assert unpriced(plan.tasks, book) == []
    two = make_plan(plan.tasks, Datasets(), book, 2).total.seconds
    assert two == pytest.approx(max(cost.seconds for cost in plan.costs))


def test_a_book_is_remembered_and_a_damaged_one_begun_anew(job, tmp_path, book):
    one, other = job().config, job("freeze_strategy=full").config
    book.learn(one, Price(train_s=1.0))
    book.learn(one, Price(encode_s=2.0))
    meanwhile = CostBook(tmp_path / "costs.json", "cpu", 1)
    meanwhile.learn(other, Price(train_s=9.0))
    meanwhile.write()
    book.write()
    again = CostBook(tmp_path / "costs.json", "cpu", 1)
    assert again.price(one) == Price(train_s=1.0, encode_s=2.0)
    assert again.price(other) == Price(train_s=9.0)
    assert CostBook(tmp_path / "costs.json", "cpu", 2).price(one) == Price()  # other threads, other seconds
    for damage in ("{", "[]", '{"version": 1}', '{"version": 1, "prices": {}}', '{"version": 99, "prices": []}'):
        (tmp_path / "costs.json").write_text(damage)
        assert CostBook(tmp_path / "costs.json", "cpu", 1).price(one) == Price()
    path = tmp_path / "costs.json"
    path.write_text(json.dumps({"version": 1, "prices": {book.key(one): {"odd": 1}}}))
    assert CostBook(path, "cpu", 1).price(one) == Price()


def test_prices_that_find_no_room_are_not_remembered(job, tmp_path, book, full_disk):
    book.learn(job().config, Price(train_s=1.0))
    book.write()
    assert list(tmp_path.glob("*costs*")) == []


def test_prices_are_learnt_from_what_tasks_took(job, book, tiny, tmp_path):
    full = job("freeze_strategy=full", "backbone.weights=random")
    run_sweep([full], tmp_path / "sweep", "full")
    record = RunRecord.read(tmp_path / "sweep" / full.id)
    (task,) = make_tasks([full], [full], [])
    (cost,) = make_plan([task], Datasets(), book, 1).costs
    learn(book, task, cost, [record], 10.0)
    assert make_plan([task], Datasets(), book, 1).total.seconds == pytest.approx(10.0)
    written = json.loads((tmp_path / "outputs" / ".cache" / "costs.json").read_text())["prices"]
    assert any("train_s" in str(price) for price in written.values())  # the sweep itself has learnt


def test_a_dry_run_prices_and_runs_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = ["train", *TINY, "name=dry", "dry_run=true", "executor.threads_per_job=1"]
    sweep = ["-m", "seed=0,1", "freeze_strategy=feature_extraction,last_n_blocks,full", "freeze_strategy.n=1"]
    for arguments, jobs in ((sweep, 6), ([], 1), (sweep, 6)):
        with pytest.raises(SystemExit) as ended:
            main([*command, *arguments])
        assert ended.value.code == 0
        out = capsys.readouterr().out
        assert re.match(rf"outputs/dry: {jobs} jobs? to run", out)
        assert out.splitlines()[1] == "at most, were nothing kept yet:"
        assert "?" not in out  # every price was measured
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == [".cache"]
    prices = json.loads((tmp_path / "outputs" / ".cache" / "costs.json").read_text())["prices"]
    measured = [price for price in prices.values() if isinstance(price, dict)]
    assert len(measured) == 3  # seeds share a price
    assert all(price["train_s"] > 0 and price["image_size"] == 32 for price in measured)


def test_a_plan_of_a_hundred_jobs_opens_each_dataset_once(job, book, monkeypatch, photos):
    jobs = [job(*photos, f"optimizer.lr_factor={1 + number}", f"seed={number % 5}") for number in range(100)]
    opened = []
    real = preflight.open_source
    monkeypatch.setattr(preflight, "open_source", lambda *args: opened.append(args) or real(*args))
    make_plan(make_tasks(jobs, jobs, []), Datasets(), book, 1)
    assert len(opened) == 1
