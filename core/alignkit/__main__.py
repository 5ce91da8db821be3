"""The ``align`` command: sets the environment before anything heavy can be imported, then hands over to the command line."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from alignkit.system.quiet import set_environment

ENDED_TOGETHER = (0, 129, 130, 143)
"""Exit codes every process of a run ends with alike: finished, hung up, interrupted, terminated."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    set_environment()
    try:
        from alignkit.cli import run_command
        from alignkit.system.distributed import leave
        from alignkit.system.worker import follow_launcher
    except KeyboardInterrupt:  # run_command cannot say so yet
        print("Interrupted.", file=sys.stderr)
        return 130

    follow_launcher()
    code = run_command(sys.argv[1:] if arguments is None else arguments)
    if code in ENDED_TOGETHER:  # after a failure the other processes may be waiting inside a collective
        leave()
    return code


if __name__ == "__main__":
    sys.exit(main())
