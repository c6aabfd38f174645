"""Which arm to take, and what the test says about it.

The arm is chosen on val. One primary test, named, says how it compares: the paired t-test over seeds on test accuracy,
two-sided, corrected by Holm (1979) over the comparisons of the chosen arm with each other arm of the dataset. Over
folds it is the corrected resampled t-test instead (``pairing.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tl_experiments.analysis.arms import MIN_SEEDS, Arm, ArmRuns, control_of
from tl_experiments.analysis.pairing import primary_test
from tl_experiments.analysis.statistics import Estimate, holm

SIGNIFICANCE = 0.05

Outcome = Literal["better", "worse", "not distinguishable", "too few seeds"]


@dataclass(frozen=True, kw_only=True)
class Against:
    """The chosen arm against one other.

    Args:
        other: The other arm.
        test: Name of the primary test.
        seeds: Seeds that both ran.
        difference: Test accuracy of the chosen arm less the other's, paired by seed and split; its interval is
            not corrected for several contrasts. Null where they share no run.
        p_value: Of the primary test, corrected, in [0, 1]; null where fewer than 3 seeds are shared.
        outcome: What may be said of the chosen arm.
    """

    other: Arm
    test: str
    seeds: int
    difference: Estimate | None
    p_value: float | None
    outcome: Outcome


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The verdict on one dataset as data; ``sentence.py`` puts it into words.

    Args:
        recommended: The arm with the best mean val accuracy.
        is_control: Whether that is ``from_scratch``.
        transfers: Whether it, or where it is the control any arm, starts from weights that were learnt elsewhere.
        control: The ``from_scratch`` arm that the recommended one is measured against, if it was run.
        seeds: Of the recommended arm.
        splits: Of the recommended arm, 1 without folds.
        test_accuracy: Of the recommended arm over its seeds, or its splits.
        contrasts: Against each other arm, in the order of the table.
    """

    recommended: Arm
    is_control: bool
    transfers: bool
    control: Arm | None
    seeds: int
    splits: int
    test_accuracy: Estimate
    contrasts: tuple[Against, ...]


def decide(arms: Sequence[ArmRuns], test_accuracy: Estimate) -> Decision:
    """Judge the arms of one dataset.

    Args:
        arms: Best on val first, as ``group_arms`` returns them.
        test_accuracy: Of the first arm.
    """
    best, *others = arms
    control = control_of(best, arms)
    return Decision(
        recommended=best.arm,
        is_control=best.is_control,
        transfers=any(arm.transfers for arm in arms) if best.is_control else best.transfers,
        control=None if control is None or best.is_control else control.arm,
        seeds=len(best.seeds),
        splits=len(best.splits),
        test_accuracy=test_accuracy,
        contrasts=_contrasts(best, others),
    )


def _contrasts(best: ArmRuns, others: Sequence[ArmRuns]) -> tuple[Against, ...]:
    found = [primary_test(best, other) for other in others]
    # Only comparisons that can be tested enter the family: the others take part in no decision.
    tested = {
        index: each.test.p_value
        for index, each in enumerate(found)
        if each.test is not None and each.test.p_value is not None and each.seeds >= MIN_SEEDS
    }
    corrected = dict(zip(tested, holm(list(tested.values())), strict=True))
    contrasts = []
    for index, (other, each) in enumerate(zip(others, found, strict=True)):
        difference, p_value = (None if each.test is None else each.test.difference), corrected.get(index)
        contrasts.append(
            Against(
                other=other.arm,
                test=each.name,
                seeds=each.seeds,
                difference=difference,
                p_value=p_value,
                outcome=_outcome(difference, p_value),
            )
        )
    return tuple(contrasts)


def _outcome(difference: Estimate | None, p_value: float | None) -> Outcome:
    if difference is None or p_value is None:
        return "too few seeds"
    if p_value >= SIGNIFICANCE:
        return "not distinguishable"
    return "better" if difference.mean > 0 else "worse"
