"""The errors that a user can cause, each with one sentence that says where, what, and how to mend it."""

from __future__ import annotations


class SpeedlitError(Exception):
    """A failure that the user can understand and mend; shown without traceback, exit code 1."""

    exit_code = 1


class UsageError(SpeedlitError):
    """A mistake in the command line, a config or an input file; exit code 2."""

    exit_code = 2


class Requeued(SpeedlitError):
    """A fit was saved and stopped because Slurm wants its nodes; exit code 75: try again."""

    exit_code = 75
