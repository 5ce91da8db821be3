"""A language model as a judge of two answers: the suite ``judge`` with corrected win rates, and the reward ``judge``."""

from alignkit_judge.estimates import corrected_win_rate, length_controlled, rated_win_rate
from alignkit_judge.judging import Judge, Question, Verdict
from alignkit_judge.opening import open_judge
from alignkit_judge.reward import JudgeReward
from alignkit_judge.settings import JudgeSettings
from alignkit_judge.suite import JudgeSuite

__all__ = [
    "Judge",
    "JudgeReward",
    "JudgeSettings",
    "JudgeSuite",
    "Question",
    "Verdict",
    "corrected_win_rate",
    "length_controlled",
    "open_judge",
    "rated_win_rate",
]
