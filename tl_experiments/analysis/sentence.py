"""The verdict in plain words, one short paragraph a dataset."""

from __future__ import annotations

from collections.abc import Mapping

from tl_experiments.analysis.arms import CONTROL, MIN_SEEDS, Arm
from tl_experiments.analysis.statistics import Estimate
from tl_experiments.analysis.verdict import Against, Decision
from tl_experiments.analysis.wording import interval, listed, p_text, plural, share, signed

_OUTCOMES = {
    "better": "It is better than {arms}.",
    "worse": "On test it is worse than {arms}.",
    "not distinguishable": "It is not distinguishable from {arms}.",
    "too few seeds": f"Against {{arms}}: too few seeds to tell, {MIN_SEEDS} needed.",
}


def verdict_sentence(
    decision: Decision, names: Mapping[Arm, str], negative: Mapping[Arm, Estimate], *, dataset: str | None
) -> str:
    """The recommendation, whether transfer helps, and how the other arms compare.

    Args:
        decision: What was found.
        names: Arm -> the shortest text that tells it apart.
        negative: Arms with negative transfer -> their gain.
        dataset: Named where the comparison holds several.
    """
    start = "Verdict: " if dataset is None else f"Verdict on {dataset}: "
    if decision.contrasts and all(contrast.outcome == "too few seeds" for contrast in decision.contrasts):
        return f"{start}{_reach(decision)}; {_too_few(max(contrast.seeds for contrast in decision.contrasts))}."
    against = next((c for c in decision.contrasts if c.other == decision.control), None)
    rest = [contrast for contrast in decision.contrasts if contrast is not against]
    parts = [f"{start}{_reach(decision)}; {_transfer(decision, against)}."]
    for outcome, template in _OUTCOMES.items():
        group = [contrast for contrast in rest if contrast.outcome == outcome]
        if group:
            parts.append(template.format(arms=listed([_named(contrast, names) for contrast in group])))
    if negative:
        arms = [f"{names[arm]} {_gap(gain)}" for arm, gain in negative.items()]
        parts.append(f"Negative transfer: {listed(arms)}.")
    return " ".join(parts)


def _reach(decision: Decision) -> str:
    arm, test = decision.recommended, decision.test_accuracy
    chosen = " — chosen on val —" if decision.contrasts else ""
    reached = " ".join(filter(None, (share(test.mean), interval(test, of_share=True))))
    over = plural(decision.seeds, "seed") + (f" and {decision.splits} splits" if decision.splits > 1 else "")
    return f"{arm.freeze_strategy} ({arm.backbone}){chosen} reaches {reached} test accuracy over {over}"


def _transfer(decision: Decision, against: Against | None) -> str:
    if decision.is_control:
        if not decision.contrasts:
            return "there is no other arm to compare it with"
        if not decision.transfers:
            return "nothing was transferred: all arms start from random weights"
        worse = all(contrast.outcome == "better" for contrast in decision.contrasts)
        return f"transfer {'does not help' if worse else 'is not shown to help'}: {CONTROL} leads on val"
    if not decision.transfers:
        return "nothing was transferred: it starts from random weights"
    if against is None:
        return f"whether transfer helps is not known: no {CONTROL} arm was run"
    if against.difference is None or against.p_value is None:
        return f"whether transfer helps: {_too_few(against.seeds)}"
    finding = {"better": "transfer helps", "worse": "transfer hurts"}.get(
        against.outcome, "transfer is not shown to help"
    )
    gain = _gap(against.difference)
    return f"{finding}: {gain} against {CONTROL} ({against.test}, Holm, {p_text(against.p_value)})"


def _gap(difference: Estimate) -> str:
    return f"{signed(difference.mean)} {interval(difference)}".rstrip()


def _named(contrast: Against, names: Mapping[Arm, str]) -> str:
    name = names[contrast.other]
    if contrast.difference is None or contrast.p_value is None:
        return f"{name} (n={contrast.seeds})"
    return f"{name} ({signed(contrast.difference.mean)}, {p_text(contrast.p_value)})"


def _too_few(seeds: int) -> str:
    return f"too few seeds to tell (n={seeds}, {MIN_SEEDS} needed)"
