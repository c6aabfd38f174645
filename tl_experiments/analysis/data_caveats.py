"""What the data itself does to a comparison: images in two splits, and test images that choices have seen."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from tl_experiments.analysis.arms import ArmRuns
from tl_experiments.analysis.images import Hits
from tl_experiments.analysis.wording import plural

_LEAKAGE = re.compile(r"Leakage: (\d+) images? stands? in more than one split")  # as runs note it


def is_leakage(note: str) -> bool:
    """Whether a note of a run says that images stand in two splits."""
    return _LEAKAGE.match(note) is not None


def leakage_warning(arms: Sequence[ArmRuns]) -> list[str]:
    """One sentence for a dataset: each label subset and fold has a note of its own, alike but for number and examples.

    Args:
        arms: Of one dataset.
    """
    runs = [run for arm in arms for trial in arm.trials.values() for run in trial]
    found = [
        (int(match[1]), note)
        for run in runs
        for note in run.data["notes"]
        if (match := _LEAKAGE.match(note)) is not None
    ]
    if not found:
        return []
    _, note = max(found)
    if len({note for _, note in found}) > 1:
        note = note.replace("Leakage: ", "Leakage: up to ", 1)
    where = plural(len(found), "run") if len(found) == len(runs) else f"{len(found)} of {plural(len(runs), 'run')}"
    return [
        f"{note.removesuffix('.')}, in {where}. Copies in train and test make test accuracy too good; tl data check "
        "names them all."
    ]


def seen_test_warning(arms: Sequence[ArmRuns], hits: Mapping[str, Hits]) -> list[str]:
    """Whether arms or trials were chosen by a mean of val over splits whose test images are val in each other.

    Args:
        arms: Of one dataset.
        hits: Job -> its test images; where those of all runs are the same, as with a test split of its own, none was
            val.
    """
    splits = {split for arm in arms for split in arm.splits}
    chosen = [
        *(["trials"] if any(len(arm.trials) > 1 for arm in arms) else []),
        *(["arms"] if len(arms) > 1 else []),
    ]
    if len(splits) < 2 or not chosen or _same_test([run.job_id for arm in arms for run in arm.runs], hits):
        return []
    return [
        f"Cross-validation: val images of one split are test images of another, and {' and '.join(chosen)} were chosen "
        f"by mean val over {len(splits)} splits. That choice has seen labels of test images, so what it chose looks a "
        "little too good; a nested choice, or a test split of its own, would not."
    ]


def _same_test(jobs: Sequence[str], hits: Mapping[str, Hits]) -> bool:
    found = [hits.get(job) for job in jobs]
    images = [np.sort(each.images) for each in found if each is not None]
    return len(images) == len(jobs) and all(np.array_equal(images[0], other) for other in images)
