"""pytest under replay: ``-p legacy_cuda.replay.pytest_plugin --replay-capability 6.1``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from legacy_cuda.errors import UserError
from legacy_cuda.replay import command, report
from legacy_cuda.replay.inside.record import Record
from legacy_cuda.replay.inside.settings import Settings

_active: tuple[Settings, Record | None, Path | None] | None = None
_exit_code: int | None = None


def pytest_addoption(parser: Any) -> None:
    group = parser.getgroup("legacy-cuda replay")
    group.addoption(
        "--replay-capability", metavar="X.Y", help="let the GPU answer as one of this capability"
    )
    group.addoption(
        "--replay-compile-only", action="store_true", help="no GPU: compile, launch nothing"
    )
    group.addoption(
        "--replay-stock", action="store_true", help="do not warn that Triton is not patched"
    )
    group.addoption("--replay-report", metavar="FILE", help="write what was replayed as JSON")


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: Any) -> None:
    """Before conftests and tests import Triton or PyTorch."""
    global _active
    options = early_config.known_args_namespace
    if not options.replay_capability:
        for name in ("compile_only", "stock", "report"):
            if getattr(options, f"replay_{name}"):
                option = name.replace("_", "-")
                raise pytest.UsageError(f"--replay-{option} needs --replay-capability X.Y")
        return
    if "PYTEST_XDIST_WORKER" in os.environ:
        return  # its controller set up the replay, and this process with it
    if os.environ.get("LEGACY_CUDA_REPLAY"):
        raise pytest.UsageError("this is a replay already: --replay-capability is too much")
    record = command.temporary_record()
    try:
        if options.replay_report:
            report.check_target(Path(options.replay_report))
        settings = command.prepare(
            options.replay_capability, options.replay_compile_only, options.replay_stock, record
        )
    except UserError as error:
        record.unlink()
        raise pytest.UsageError(
            ". ".join(
                part.replace("--compile-only", "--replay-compile-only")
                for part in (error.what, error.why, error.next_step)
                if part
            )
        ) from error
    # processes that the tests start find the replay in PYTHONPATH, this one by this import
    os.environ.update(command.environment(settings, os.environ))
    sys.path.insert(0, str(command.SITE))
    from legacy_cuda.replay import inside
    from legacy_cuda.replay.inside import pytest_header

    made = inside.install()
    early_config.pluginmanager.register(pytest_header)
    target = options.replay_report
    _active = settings, made, Path(target).absolute() if target else None


def pytest_sessionfinish(exitstatus: int) -> None:
    global _exit_code
    _exit_code = int(exitstatus)


def pytest_unconfigure() -> None:
    global _active
    if _active is None:
        return
    (settings, record, target), _active = _active, None
    if record is not None:
        record.flush()
    document = report.gather(settings, sys.argv, _exit_code)
    print(f"legacy-cuda: {report.summary(document)}", file=sys.stderr, flush=True)
    if target is not None:
        try:
            report.write(document, target)
        except OSError as error:
            print(f"error: the report could not be written: {error}", file=sys.stderr)
    Path(settings.record).unlink(missing_ok=True)
