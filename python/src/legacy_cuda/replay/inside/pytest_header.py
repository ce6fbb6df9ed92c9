"""pytest says in its header and in its summary what it was replayed on."""

from __future__ import annotations

import os
from typing import Any

from .settings import Settings

_VARIABLE = "PYTEST_PLUGINS"


def announce(config: Any) -> None:
    """Before pytest is configured: have it load this module.

    Not for the processes that it starts: those that are not replayed would not find it.
    """
    before = os.environ.get(_VARIABLE)
    os.environ[_VARIABLE] = ",".join(part for part in (before, __name__) if part)
    read = config._prepareconfig

    def prepareconfig(*arguments: Any, **options: Any) -> Any:
        try:
            return read(*arguments, **options)
        finally:
            if before is None:
                os.environ.pop(_VARIABLE, None)
            else:
                os.environ[_VARIABLE] = before

    config._prepareconfig = prepareconfig


def pytest_report_header(config: Any) -> str:
    return Settings.from_environment().words


def pytest_terminal_summary(terminalreporter: Any) -> None:
    terminalreporter.write_sep("=", Settings.from_environment().words)
