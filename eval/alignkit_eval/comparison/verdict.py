"""The verdict of a comparison in sentences: which arm is better, by how much, how certain that is, and at what price."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from alignkit_eval.comparison.result import ContrastResult
from alignkit_eval.headline import number, signed


class Judged(NamedTuple):
    """A contrast between two arms."""

    baseline: str
    contrast: ContrastResult


def verdict_of(
    baseline: str,
    arms: Sequence[str],
    contrasts: Sequence[ContrastResult],
    pairs: Sequence[Judged],
    *,
    one_seed: Collection[str] = (),
) -> tuple[str, str | None]:
    """Return the verdict and the winner (None: no arm is better than every other one in the objective and worse by no guard).

    The sentences report ``contrasts``, all those with the baseline, with p corrected over them. ``pairs`` are the contrasts of
    the objective and of the guards between any two arms, with p corrected over each kind. A winner must be significant under
    both corrections, so that the verdict agrees with the table of contrasts. ``one_seed`` names the arms trained with one seed.
    """
    deciding = {(pair.contrast.suite, pair.contrast.metric) for pair in pairs if not pair.contrast.guard}
    if not deciding:
        return "No deciding metric is shared by these runs; see the individual contrasts.", None
    shown = [Judged(baseline, c) for c in contrasts if c.guard or (c.suite, c.metric) in deciding]
    winner = next(
        (
            arm
            for arm in arms
            if all(_beats(arm, other, pairs) for other in arms if other != arm)
            and all(_beats(arm, other, shown) for other in arms if other != arm and baseline in (arm, other))
        ),
        None,
    )
    sentences = [] if winner is None or len(arms) == 2 else [f"{winner} is better than every other arm."]
    for arm in arms:
        own = [c for _, c in shown if c.arm == arm and not c.guard]
        if own:
            seeds = " on one seed" if arm in one_seed or baseline in one_seed else ""
            if any(c.models for c in own):
                seeds = f" over {own[0].seeds} seeds"
            guards = [c for _, c in shown if c.arm == arm and c.guard]
            sentences.append(_sentence(arm, baseline, own, guards, seeds))
            sentences += _guards(arm, guards)
            sentences += _of_models(arm, [*own, *guards])
    if winner is None and len(arms) > 2:
        sentences.append("No arm is better than every other one.")
    return " ".join([*sentences, *why_not_significant(contrasts)]), winner


def why_not_significant(contrasts: Sequence[ContrastResult]) -> list[str]:
    """Return a sentence where an interval leaves out 0 and the corrected p is not below 0.05."""
    odd = [c for c in contrasts if c.p_holm is not None and not c.significant and _without_zero(c)]
    if not odd:
        return []
    tests = sum(c.p is not None for c in contrasts)
    names = ", ".join(dict.fromkeys(_title(c) for c in odd))
    return [
        f"The interval of {names} leaves out 0 although p is not below 0.05: each interval is for one comparison alone, and p is "
        f"corrected for {tests} of them (Holm)."
    ]


def _without_zero(c: ContrastResult) -> bool:
    return c.low is not None and c.high is not None and not c.low <= 0 <= c.high


def _beats(arm: str, other: str, pairs: Sequence[Judged]) -> bool:
    """Whether the first arm is significantly better than the other by every deciding contrast, and worse by no guard."""
    sides: dict[bool, list[bool | None]] = {False: [], True: []}  # of the objective, of the guards
    for base, contrast in pairs:
        if {base, contrast.arm} == {arm, other}:
            for better in _sides(contrast) if contrast.guard else [contrast.better]:
                sides[contrast.guard].append(better if contrast.arm == arm or better is None else not better)
    return bool(sides[False]) and all(sides[False]) and False not in sides[True]


def _sides(contrast: ContrastResult) -> list[bool | None]:
    """Return whether the arm is better, as a method and as these trained models; a guard must not be worse in either.

    A difference of the trained models that is shown to be smaller than the margin does not count.
    """
    models = contrast.models
    return [contrast.better, *([models.better] if models and not models.within_margin else [])]


def _sentence(
    arm: str, baseline: str, own: Sequence[ContrastResult], guards: Sequence[ContrastResult], seeds: str
) -> str:
    sides = {contrast.better for contrast in own}
    numbers = "; ".join(map(_shown, own))
    if sides == {True} or sides == {False}:
        against = [c for c in guards if (sides == {False}) in _sides(c)]
        if against:
            names = " and ".join(_title(c) for c in against)
            ahead, price = ("ahead of", "worse") if sides == {True} else ("behind", "better")
            return (
                f"{arm} is {ahead} {baseline}{seeds} in the objective ({numbers}), but {price} by {names}: no winner."
            )
        return f"{arm} is {'better' if sides == {True} else 'worse'} than {baseline}{seeds} ({numbers})."
    if True in sides and False in sides:
        return f"{arm} and {baseline} cannot be ranked{seeds}: the metrics disagree ({numbers})."
    numbers += _detectable([contrast for contrast in own if contrast.better is None])
    same = [contrast for contrast in own if contrast.outcome == "equivalent"]
    if sides == {None} and same == list(own):
        return f"{arm} and {baseline} are equivalent{seeds} ({'; '.join(map(_within, own))})."
    if sides == {None}:
        numbers += "".join(f"; equivalent by {_within(contrast)}" for contrast in same)
        return f"{arm} and {baseline} do not differ significantly{seeds}: undecided ({numbers})."
    one, other = ("one metric", "the other") if len(own) == 2 else ("some metrics", "others")
    side = "ahead of" if True in sides else "behind"
    return f"{arm} is {side} {baseline}{seeds} by {one} and not by {other}: undecided ({numbers})."


def _guards(arm: str, guards: Sequence[ContrastResult]) -> list[str]:
    """Return a sentence on the metrics that do not decide, each better, worse, equivalent or undecided."""
    if not guards:
        return []
    words = []
    for guard in guards:
        shown = _within(guard) if guard.outcome == "equivalent" else _shown(guard)
        words.append(f"{_title(guard)} is {guard.outcome} ({shown})")
    return [f"Of {arm}, {', '.join(words)}."]


def _of_models(arm: str, contrasts: Sequence[ContrastResult]) -> list[str]:
    """Return what is shown about the trained models alone, and what it would take to show it about the method."""
    found = [(c, c.models) for c in contrasts if c.models]
    if not found:
        return []
    words = [f"{_title(c)} {models.outcome}{_p(models)}" for c, models in found]
    text = f"As to the models of these {found[0][0].seeds} seeds alone, {arm} is: {', '.join(words)}"
    open_ = [c for c, models in found if models.significant and not c.significant]
    needed = [f"{_title(c)} {f'about {c.seeds_needed} seeds' if c.seeds_needed else 'over 100 seeds'}" for c in open_]
    return [f"{text}; to show it of other seeds too would take: {', '.join(needed)}." if needed else f"{text}."]


def _title(contrast: ContrastResult) -> str:
    return contrast.metric.replace("_", " ")


def _p(contrast: ContrastResult) -> str:
    p = contrast.p_equivalent_holm if contrast.outcome == "equivalent" else contrast.p_holm
    return "" if p is None else f" (p {p_text(p)})"


def _within(contrast: ContrastResult) -> str:
    margin = f"{100 * (contrast.margin or 0):g} %" if contrast.log else f"{contrast.margin:g}"
    text = f"{_title(contrast)} {signed(contrast.diff)}, margin {margin}"
    return text if contrast.p_equivalent_holm is None else f"{text}, p {p_text(contrast.p_equivalent_holm)}"


def _shown(contrast: ContrastResult) -> str:
    text = f"{_title(contrast)} {signed(contrast.diff)}"
    if contrast.low is not None and contrast.high is not None:
        text += f" [{signed(contrast.low)}, {signed(contrast.high)}]"
    return text if contrast.p_holm is None else f"{text}, p {p_text(contrast.p_holm)}"


def _detectable(own: Sequence[ContrastResult]) -> str:
    known = [contrast.detectable for contrast in own if contrast.detectable is not None]
    few = next((contrast.clusters for contrast in own if not contrast.reachable), None)
    if few is not None:
        return f"; minimum detectable difference: none, no result of {few} clusters could be significant after the correction"
    if len({number(value) for value in known}) == 1 and len(known) == len(own):
        return f"; minimum detectable difference (80 % power): {number(known[0])}"
    each = [f"{_title(c)} {'none' if c.detectable is None else number(c.detectable)}" for c in own]
    return f"; minimum detectable differences (80 % power): {', '.join(each)}" if known else ""


def p_text(p: float) -> str:
    """Return p as shown in tables.

    >>> p_text(0.0312), p_text(0.00001), p_text(1.0)
    ('0.031', '<0.001', '1.000')
    """
    return "<0.001" if p < 0.001 else f"{p:.3f}"
