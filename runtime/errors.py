"""The exceptions of this project.

Every message says which thing, what was received, what was expected and what to do. The ``wnlb``
command prints that message as one line and exits with the class's ``exit_code``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable


class WnlbError(Exception):
    """Base of everything that a user can cause and mend; exit code 2."""

    exit_code = 2


class CheckpointError(WnlbError):
    """A checkpoint that cannot be read as a Mask R-CNN."""


class ContractError(WnlbError):
    """A model file without a valid contract, or options that make none."""


class PictureError(WnlbError):
    """A picture, video or camera that cannot be read."""


class PictureWarning(UserWarning):
    """Something about pictures that a user should know, though they are read; the command tells it in one line."""


class GraphError(WnlbError):
    """An ONNX graph that breaks the rules of a deployable one."""


class MissingDependency(WnlbError):
    """A package that this step needs is not installed."""


class Unavailable(WnlbError):
    """A server that does not answer now, and may later."""


class VerificationError(WnlbError):
    """An exported file that does not compute what the checkpoint computes; exit code 1."""

    exit_code = 1


class KernelError(WnlbError):
    """A kernel that does not compile or breaks a limit of its architecture; exit code 1."""

    exit_code = 1


def exit_code(run: Callable[[], object]) -> int:
    """Run a script's main part: 0, or the code of the WnlbError that ended it, told in one line on standard error."""
    try:
        run()
    except WnlbError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0
