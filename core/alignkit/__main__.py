"""The ``align`` command: sets the environment before anything heavy can be imported, then hands over to the command line."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from alignkit.quiet import set_environment


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    set_environment()
    from alignkit.cli import run_command

    return run_command(sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    sys.exit(main())
