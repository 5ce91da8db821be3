"""The judge that settings name."""

from __future__ import annotations

from alignkit_judge.judging import Judge
from alignkit_judge.local import LocalJudge
from alignkit_judge.remote import RemoteJudge
from alignkit_judge.settings import JudgeSettings


def open_judge(settings: JudgeSettings, *, together: bool = False) -> Judge:
    """Return the judge; a local model is loaded when it is first asked, and ``together`` shares its work among processes.

    Raises:
        ConfigError: the endpoint's key is not in the environment.
    """
    return LocalJudge(settings, together=together) if settings.url is None else RemoteJudge(settings)
