"""``legacy-cuda serve`` with a driver that is stood in for: an engine that is on the GPUs is called
ready, one that fell to the CPU is ended. No GPU has a part in it, and the engines are stand-ins."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import model_files
import pytest
import tiny

from tests.nvml import standin
from tests.nvml.standin import Standin

# Loads until the file "loaded" is there, so that the driver can be told of it meanwhile.
SERVER = """\
#!{python}
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if os.path.exists("loaded") else 503)
        self.end_headers()
    def log_message(self, *_):
        pass
port = int(sys.argv[sys.argv.index("--port") + 1])
print(os.getpid(), file=open("pid.part", "w"), flush=True)
os.rename("pid.part", "pid")
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


@pytest.mark.parametrize(
    ("processes", "used_mib", "code", "said"),
    [
        ([{"memory_mib": 9000}], 9000, 0, r"9000 MiB on the GPUs, \d+ planned"),
        ([], 9000, 0, r"9000 MiB more in use on the GPUs"),
        ([], 0, 3, r"does not use the GPUs[\s\S]*it uses the CPU"),
        ([{"memory_mib": 0}], 0, 3, r"it uses the CPU"),
    ],
)
def test_ready_is_said_of_an_engine_on_the_gpus_alone(
    tmp_path: Path, processes: list[dict[str, Any]], used_mib: int, code: int, said: str
) -> None:
    machine = Standin(standin.read("p40x2"), tmp_path)
    machine.change(0, processes=[], memory_used_mib=0)
    model, program = tmp_path / "tiny.gguf", tmp_path / "llama-server"
    model.write_bytes(model_files.llama())
    program.write_text(SERVER.format(python=sys.executable))
    program.chmod(0o755)
    command = [*(sys.executable, "-m", "legacy_cuda", "serve", str(model), "--gpu", "p40")]
    command += ["--program", str(program), "--port", str(tiny.free_port())]
    process = subprocess.Popen(
        command, cwd=tmp_path, env={**os.environ, **machine.environment},
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        while not (tmp_path / "pid").exists():
            assert process.poll() is None
            time.sleep(0.05)
        pid = int((tmp_path / "pid").read_text())
        mine = [{**one, "pid": pid} for one in processes]
        machine.change(0, processes=mine, memory_used_mib=used_mib)
        (tmp_path / "loaded").touch()
        assert process.stderr is not None
        text = ""
        while not re.search(said, text):
            line = process.stderr.readline()
            assert line, text
            text += line
        assert ("ready, process" in text) == (code == 0)
    finally:
        if code == 0:
            process.terminate()
        assert process.wait(60) == code
        process.communicate()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
