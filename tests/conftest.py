"""The option ``--large``, and what it keeps from running; Control-C is heard."""

from __future__ import annotations

import signal

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--large",
        action="store_true",
        help="also run the tests that download several gigabytes of wheels",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "large: downloads gigabytes; only runs with --large")
    # a script's background jobs begin with SIGINT ignored, and so does all that they start
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--large", default=False):
        return
    skip = pytest.mark.skip(reason="downloads gigabytes of wheels: run with --large")
    for item in items:
        if "large" in item.keywords:
            item.add_marker(skip)
