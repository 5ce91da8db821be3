"""Uploads of exported models to the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from alignkit.errors import ConfigError, RunFailedError, first_line


def upload(directory: Path, repo: str, *, private: bool, dry_run: bool, say: Callable[[str], None]) -> None:
    """Upload a directory, with its model card, to a repository that is made where there is none; or say what would be.

    Raises:
        ConfigError: the name is not one of a repository.
        RunFailedError: the hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except ValueError as error:
        raise ConfigError(f"--push {repo}: {first_line(error)}") from None
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    if dry_run:
        say(f"would upload to {repo} ({'private' if private else 'public'} if it is new):")
        for path in files:
            say(f"  {path.relative_to(directory)}  {path.stat().st_size:,} bytes")
        return
    try:
        api = HfApi()
        api.create_repo(repo, private=private, exist_ok=True)
        commit = api.upload_folder(repo_id=repo, folder_path=directory, commit_message="Upload with alignkit")
    except Exception as error:  # of the network, the hub, or missing credentials: each has its own type
        refused = isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403)
        advice = "; log in with `hf auth login`, or set HF_TOKEN to a token that may write there" if refused else ""
        raise RunFailedError(
            f"{repo} was not uploaded ({directory} is complete): {first_line(error).rstrip('.')}{advice}"
        ) from error
    say(f"uploaded: {commit.commit_url}")
