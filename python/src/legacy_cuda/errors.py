"""Errors a person is told of, each with its exit code: what, why, what to do next."""

from __future__ import annotations

import errno

_NAMES = frozenset(
    {
        errno.EEXIST,
        errno.EINVAL,
        errno.EISDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.ENOTDIR,
        errno.ENOTEMPTY,
    }
)


def is_about_a_name(error: OSError) -> bool:
    """Whether the disk refused a file's name or place, not for want of room or permission.

    Where names come out of an archive, it is the archive that is bad then.
    """
    return error.errno in _NAMES


class UserError(Exception):
    """Bad input (exit code 2), a refusal (1), or surroundings that failed (3).

    Args:
        what: what is wrong, one line.
        why: the reason or the evidence, if there is more to say.
        next_step: what to do about it; several ways are lines.
    """

    exit_code = 2

    def __init__(self, what: str, why: str = "", next_step: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.next_step = next_step


class Refused(UserError):
    """What was asked for is understood, and does not work on these cards: exit code 1."""

    exit_code = 1


class SurroundingsError(UserError):
    """The network, the disk or a permission failed: exit code 3."""

    exit_code = 3
