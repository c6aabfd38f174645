"""Where the evidence does not point one way: tests that disagree, and published orderings that do not show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tl_experiments.analysis.arms import MIN_SEEDS, Arm, ArmRuns
from tl_experiments.analysis.findings import Contrast
from tl_experiments.analysis.pairing import primary_test
from tl_experiments.analysis.verdict import SIGNIFICANCE
from tl_experiments.analysis.wording import interval, listed, signed

# Below so many pairs no rank or sign test can reach 5%: 2 ** (1 - 5) is 6%.
_SMALLEST_EXACT = 6
# What transfer papers found with enough data; that a small or distant dataset does not show it is a finding.
PUBLISHED = (
    ("full", "from_scratch", "Yosinski et al., 2014"),
    ("full", "feature_extraction", "Kornblith et al., 2019"),
    ("discriminative", "full", "Howard & Ruder, 2018"),
    ("lp_ft", "full", "Kumar et al., 2022"),
)


def disagreement_warnings(contrasts: Sequence[Contrast], names: Mapping[Arm, str]) -> list[str]:
    """Contrasts of the recommended arm in which the tests beside the primary one say something else.

    Args:
        contrasts: Of one dataset.
        names: Arm -> the shortest text that tells it apart.
    """
    ranks, images, seeds = [], [], []
    for contrast in contrasts:
        if contrast.p_holm is None or contrast.p_value is None:
            continue
        name, found = names[contrast.second], contrast.p_holm < SIGNIFICANCE
        beside = [p for p in (contrast.wilcoxon_p, contrast.sign_flip_p) if p is not None]
        # One that only the correction made insignificant is no disagreement.
        decided = found or contrast.p_value >= SIGNIFICANCE
        if decided and contrast.seeds >= _SMALLEST_EXACT and beside and found != (max(beside) < SIGNIFICANCE):
            ranks.append(name)
        if contrast.images is not None:
            apart = contrast.images.low > 0 or contrast.images.high < 0
            if found and not apart:
                images.append(name)
            elif apart and contrast.p_value >= SIGNIFICANCE:
                seeds.append(name)
    lines = []
    if ranks:
        lines.append(f"Wilcoxon's test or the sign-flip test disagrees with the primary test about {listed(ranks)}.")
    if images:
        lines.append(
            f"Against {listed(images)} the difference holds over seeds but not over test images: "
            "other images may show none."
        )
    if seeds:
        lines.append(
            f"Against {listed(seeds)} the difference holds over test images but not over seeds: "
            "other seeds may show none."
        )
    return lines


def ordering_warnings(arms: Sequence[ArmRuns], _names: Mapping[Arm, str]) -> list[str]:
    """Published orderings of two strategies of which the test accuracy here shows the reverse, or no difference."""
    warnings = []
    for better, worse, source in PUBLISHED:
        for first in (arm for arm in arms if _strategy(arm) == better and arm.transfers):
            for second in (arm for arm in arms if _strategy(arm) == worse and arm.pairing == first.pairing):
                if not second.is_control and second.arm.backbone != first.arm.backbone:
                    continue
                found = primary_test(first, second)
                if found.test is not None and found.seeds >= MIN_SEEDS and found.test.difference.mean <= 0:
                    gap = f"{signed(found.test.difference.mean)} {interval(found.test.difference)}".rstrip()
                    where = f" on {first.arm.backbone}"
                    warnings.append(
                        f"A published ordering does not show{where}: {first.arm.freeze_strategy} above "
                        f"{second.arm.freeze_strategy} ({source}); here it is {gap}."
                    )
    return warnings


def _strategy(arm: ArmRuns) -> str:
    return str(arm.runs[0].config["freeze_strategy"]["name"])
