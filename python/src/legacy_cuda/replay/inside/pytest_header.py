"""pytest says in its header and in its summary what it was replayed on."""

from __future__ import annotations

from typing import Any

from .settings import Settings


def pytest_report_header(config: Any) -> str:
    return Settings.from_environment().words


def pytest_terminal_summary(terminalreporter: Any) -> None:
    terminalreporter.write_sep("=", Settings.from_environment().words)
