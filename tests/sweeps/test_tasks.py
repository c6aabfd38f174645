"""What one process runs: which jobs together, in which order, and how a task that dies is taken apart."""

from __future__ import annotations

import random

import pytest

from tl_experiments.sweeps.jobs import Job
from tl_experiments.sweeps.tasks import Task, make_tasks, trains_live
from tl_experiments.training.identity import job_id


@pytest.fixture
def job(tiny):
    def make(*overrides):
        config = tiny(*overrides)
        return Job(job_id(config), overrides, config)

    return make


def ids(tasks):
    return [[job.id for job in task.jobs] for task in tasks]


def test_probes_on_the_same_features_are_one_task_and_come_first(job):
    full, partial = job("freeze_strategy=full"), job("freeze_strategy=last_n_blocks", "freeze_strategy.n=1")
    lp_ft = job("freeze_strategy=lp_ft")
    probes = [job(f"seed={seed}", f"optimizer.lr_factor={factor}", "backbone.weights=random") for seed in (0, 1)
              for factor in (1, 3)]  # fmt: skip
    larger = [job(f"optimizer.lr_factor={factor}", "backbone.preprocessing.image_size=64") for factor in (1, 3)]
    jobs = [full, lp_ft, probes[0], partial, larger[0], probes[2], probes[1], larger[1], probes[3]]
    expected = [
        [probes[0].id, probes[1].id],  # random weights follow the seed
        [larger[0].id, larger[1].id],
        [probes[2].id, probes[3].id],
        [partial.id],
        [full.id],
        [lp_ft.id],
    ]
    assert ids(make_tasks(jobs, jobs, [])) == expected
    assert [task.log for task in make_tasks(jobs, jobs, [])][3] == f"{partial.id}/job.log"


def test_the_order_of_the_tasks_is_that_of_the_command(job):
    jobs = [job("freeze_strategy=full", f"seed={seed}") for seed in range(5)]
    random.Random(0).shuffle(jobs)
    assert ids(make_tasks(jobs, jobs, [])) == [[one.id] for one in jobs]


def test_a_stored_group_is_formed_again_with_its_jobs_that_are_done(job):
    jobs = [job(f"optimizer.lr_factor={factor}") for factor in (1, 2, 3, 4, 5)]
    a, b, c, d, e = (one.id for one in jobs)
    todo = [jobs[1], jobs[4]]
    tasks = make_tasks(jobs, todo, [[a, b, c], [d]])
    assert ids(tasks) == [[a, b, c], [e]]  # not [b, e]: the grouping fixes the last bits
    assert [task.done for task in tasks] == [frozenset({0, 2}), frozenset()]
    assert [one.id for one in tasks[0].todo] == [b]
    assert ids(make_tasks(jobs[:2], jobs[:2], [[a, b, c]])) == [[a, b]]  # c's config is not known to this command
    off = [job(f"optimizer.lr_factor={factor}", "feature_cache=off") for factor in (1, 2)]
    assert ids(make_tasks(off, off, [[a, b]])) == [[a], [b]]  # the same jobs, but not to be trained together


@pytest.mark.parametrize(("left", "parts"), [([0, 1, 2, 3, 4], [3, 2]), ([1, 3], [1, 1]), ([2], [1])])
def test_a_task_that_died_is_halved(job, left, parts):
    jobs = tuple(job(f"optimizer.lr_factor={factor}") for factor in (1, 2, 3, 4, 5))
    halves = Task(jobs, frozenset({4}) - set(left)).split(left)
    assert [len(part.jobs) for part in halves] == parts
    assert [one for part in halves for one in part.jobs] == [jobs[position] for position in left]
    assert all(not part.done for part in halves)


def test_a_task_knows_which_backbones_want_the_images_it_decodes(job):
    small, large = job(), job("backbone.preprocessing.image_size=64")
    few, letters = job("dataset.shots=1", "seed=1"), job("dataset=letters")
    tasks = make_tasks([small, large, few, letters], [small, large, few, letters], [])
    by_job = {task.jobs[0].id: task.shared for task in tasks}
    both = (small.config.backbone, large.config.backbone)
    assert by_job[small.id].backbones == by_job[large.id].backbones == by_job[few.id].backbones == both
    assert by_job[letters.id].backbones == (letters.config.backbone,)
    assert by_job[small.id].keep_decoded
    assert not by_job[letters.id].keep_decoded  # its features are all that anybody wants
    full = job("dataset=letters", "freeze_strategy=full")
    (task,) = make_tasks([full], [full], [])
    assert task.shared.keep_decoded


@pytest.mark.parametrize(
    ("overrides", "live"),
    [
        ([], False),
        (["freeze_strategy=last_n_blocks", "freeze_strategy.n=1"], False),
        (["freeze_strategy=surgical", "freeze_strategy.blocks=[layer4]"], False),
        (["freeze_strategy=surgical", "freeze_strategy.blocks=[first]"], True),
        (["freeze_strategy=norm_only"], True),
        (["freeze_strategy=lp_ft"], True),
        (["freeze_strategy=full"], True),
        (["feature_cache=off"], True),
        (["augmentation=flip_crop"], True),
        (["augmentation=flip_crop", "feature_cache.views=2"], False),
    ],
)
def test_who_needs_the_pixels_at_every_step(tiny, overrides, live):
    assert trains_live(tiny(*overrides)) is live
