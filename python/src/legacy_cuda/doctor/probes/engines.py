"""Services that run Ollama, llama.cpp, vLLM or SGLang: their units, as systemd reads them; and the
processes of these engines, by their command lines."""

from __future__ import annotations

import re
from collections.abc import Iterator

from legacy_cuda.doctor import units
from legacy_cuda.doctor.facts import EngineFacts, Fact, Service
from legacy_cuda.doctor.place import Place

FOLDERS = (
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
)
OLLAMA = ("/usr/local/lib/ollama", "/usr/lib/ollama")
_ENGINE = re.compile(r"ollama|llama-server|vllm|sglang")
_ENGINE_BYTES = re.compile(_ENGINE.pattern.replace("llama-server", r"llama[-_]").encode())
_CUDA = re.compile(r"cuda_v(\d{1,2})")
_ABOUT_GPUS = re.compile(
    r"(CUDA|NVIDIA|NCCL|OLLAMA|GGML|LLAMA_ARG|VLLM|SGLANG|TORCH|TRITON|PYTORCH)_\w+|LD_LIBRARY_PATH"
)
SECRET = re.compile(r"key|token|secret|passw|credential|auth|^-hft$", re.IGNORECASE)
"""Names of options and variables with secrets. ``-hft``: llama-server's short ``--hf-token``."""
OTHERS = re.compile(r"host|rpc|origin|addr", re.IGNORECASE)
"""Options and variables that name machines, other ones too."""
HIDDEN = "(hidden)"
_OPEN = re.compile(
    r"(?:\w+:/{2})?(?:localhost|127(?:\.\d+){3}|0\.0\.0\.0|::1?|\[::1?\]|\*|)(?::\d+)?/?",
    re.IGNORECASE,
)
_LAUNCHERS = frozenset(
    ("env", "nice", "ionice", "numactl", "taskset", "nohup", "stdbuf", "chrt", "uv", "uvx")
)
_PYTHON = re.compile(r"python[0-9.]*")
_MOST = 100  # units that are kept


def look(place: Place) -> EngineFacts:
    """Services that are installed, whether they run or not, Ollama's CUDA libraries, processes."""
    return EngineFacts(services(place), tuple(_ollama(place)), processes(place))


def processes(place: Place) -> tuple[Service, ...]:
    """The processes that are engines, as services named ``process N``."""
    return place.once("processes", lambda here: tuple(_processes(here)))


def _processes(place: Place) -> Iterator[Service]:
    found = 0
    for name in place.names("/proc"):
        path = f"/proc/{name}/cmdline"
        if not name.isdecimal() or (data := place.data(path, 1 << 16)) is None:
            continue
        if not _ENGINE_BYTES.search(data):
            continue
        command = [word.decode("utf-8", "replace") for word in data.split(b"\0")[:-1]]
        engine = engine_of(command)
        if engine is not None and found < _MOST:
            found += 1
            words = Fact(tuple(shown(command)), path)
            yield Service(f"process {name}", engine, words, (), None)


def services(place: Place) -> tuple[Service, ...]:
    """The services that start an engine."""
    return place.once("services", lambda here: tuple(_services(here)))


def _services(place: Place) -> Iterator[Service]:
    seen: dict[str, str] = {}
    for folder in FOLDERS:
        for name in place.names(folder):
            if name.endswith(".service"):
                seen.setdefault(name, f"{folder}/{name}")
    found = 0
    for name, path in sorted(seen.items()):
        service = _service(place, name, path)
        if service is not None and found < _MOST:
            found += 1
            yield service


def _service(place: Place, name: str, path: str) -> Service | None:
    own = place.text(path)
    if own is None:
        return None  # masked: a link to /dev/null
    dropins: dict[str, str] = {}
    for folder in FOLDERS:
        for item in place.names(f"{folder}/{name}.d"):
            if item.endswith(".conf"):
                dropins.setdefault(item, f"{folder}/{name}.d/{item}")
    texts = {path: own}
    for _, dropin in sorted(dropins.items()):
        text = place.text(dropin)
        if text is not None:
            texts[dropin] = text
    if not any(_ENGINE.search(text) for text in texts.values()):
        return None
    found = units.settings(texts.values())
    command = units.command(found)
    engine = engine_of(command)
    if engine is None:
        return None
    each = {file: units.settings([text]) for file, text in texts.items()}
    set_by = {key: file for file, part in each.items() for key in units.variables(part)}
    values = units.variables(found)
    for value in found.get(("Service", "EnvironmentFile"), []):
        file = value.lstrip("-")
        text = place.text(file) if file.startswith("/") and "%" not in file else None
        by_file = units.of_file(text or "")
        values |= by_file
        set_by |= dict.fromkeys(by_file, file)
    private = units.last(found, "PrivateDevices")
    return Service(
        unit=name,
        engine=engine,
        command=Fact(tuple(shown(command)), _last(each, "ExecStart") or path),
        variables=tuple(
            (key, Fact(HIDDEN if _names_another(key, value) else value, set_by[key]))
            for key, value in sorted(values.items())
            if _ABOUT_GPUS.fullmatch(key) and not SECRET.search(key)
        ),
        private_devices=Fact(private, _last(each, "PrivateDevices") or path) if private else None,
    )


def _last(each: dict[str, units.Settings], key: str) -> str | None:
    """The last file that says something of a key."""
    files = [file for file, part in each.items() if part.get(("Service", key))]
    return files[-1] if files else None


def engine_of(command: list[str]) -> str | None:
    """Which engine a command starts, by its name in engines.toml where it has one there: the
    program itself, what a launcher such as ``env`` or ``numactl`` starts, a module or script of
    Python."""
    if not command:
        return None
    first = _name(command[0])
    words = command[1:8] if first in _LAUNCHERS or _PYTHON.fullmatch(first) else []
    return next((engine for word in (command[0], *words) if (engine := _engine(word))), None)


def _name(word: str) -> str:
    return word.rpartition("/")[2].removeprefix(".").removesuffix("-wrapped")


def _engine(word: str) -> str | None:
    name = _name(word)
    if name == "ollama":
        return "ollama"
    if name in ("llama-server", "llama_cpp.server"):
        return "llama-cpp"
    for engine in ("vllm", "sglang"):
        if name == engine or name.startswith(f"{engine}."):
            return engine
    return None


def shown(command: list[str]) -> Iterator[str]:
    """A command's words without what may be secret, the values of options such as --api-key (vLLM
    takes several behind one), and without the names of other machines."""
    before, hiding = "", False
    for word in command:
        option, equals, value = word.partition("=")
        is_value = not word.startswith("-") and _names_another(before, word)
        is_value |= hiding and not word.startswith("-")
        if SECRET.search(before) or is_value:
            yield HIDDEN
        elif equals and (SECRET.search(option) or _names_another(option, value)):
            yield f"{option}={HIDDEN}"
        else:
            yield word
        before = word if not equals and word.startswith("-") else ""
        if word.startswith("-"):
            hiding = SECRET.search(option) is not None


def _names_another(name: str, value: str) -> bool:
    """Whether the value of an option or a variable names a machine that may be another one."""
    each = (item.strip() for item in value.split(","))
    return OTHERS.search(name) is not None and not all(map(_OPEN.fullmatch, each))


def _ollama(place: Place) -> Iterator[Fact[tuple[int, ...]]]:
    for folder in OLLAMA:
        numbers = [
            int(match[1]) for name in place.names(folder) if (match := _CUDA.fullmatch(name))
        ]
        if numbers:
            yield Fact(tuple(sorted(numbers)), folder)
