"""A service of systemd for an engine: unprivileged, without a view of the system but its model."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./,:=+@[]")
_CARDS = 16  # GPUs whose device nodes are made; a node without a GPU is of no use and no harm
_MAKE_NODES = (
    f"ExecStartPre=-+/usr/bin/nvidia-modprobe {' '.join(f'-c {n}' for n in range(_CARDS))} -u"
)


def quoted(word: str) -> str:
    """A word as systemd reads it in ``ExecStart=:`` and Environment=, where ``$`` is itself.

    Raises:
        ValueError: there is a line break in it.
    """
    _check(word)
    escaped = word.replace("%", "%%")
    if word and set(escaped) <= _PLAIN:
        return escaped
    return '"' + escaped.replace("\\", "\\\\").replace('"', '\\"') + '"'


def quoted_path(path: Path) -> str:
    """A path as systemd reads it in BindReadOnlyPaths=, where a colon separates.

    Raises:
        ValueError: there is a line break in it.
    """
    _check(str(path))
    escaped = str(path).replace("%", "%%")
    return "".join("\\" + sign if sign in "\\:\"' \t" else sign for sign in escaped)


def _check(word: str) -> None:
    if any(sign in word for sign in "\n\r\0"):
        raise ValueError(f"there is a line break in {word!r}")


def unit(
    title: str,
    command: Sequence[str],
    environment: Mapping[str, str],
    readable: Sequence[Path],
    restart_seconds: int = 5,
    loopback: bool = True,
    cache: str = "",
    families: Sequence[str] = (),
) -> str:
    """The text of a service.

    The devices are those of NVIDIA's driver alone, and only loopback can be reached unless told
    otherwise. DeviceAllow= looks up nvidia-uvm's number before anything of the service runs, so
    its module is loaded by another unit. ``nvidia-modprobe`` makes the devices of the GPUs and of
    nvidia-uvm, which a service without privileges cannot; a resumed machine needs it again, so it
    runs before each start.

    Args:
        title: what it is, one line.
        command: the program, by its full path, and its arguments.
        environment: variables for it.
        readable: files and folders that it reads beside the system's own.
        restart_seconds: how long after it ended it is started again.
        loopback: whether it listens there only.
        cache: name of a folder below /var/cache that it may write into, its home; "" for none.
        families: of addresses, beside those of the internet and of Unix: ``AF_NETLINK``.

    Raises:
        ValueError: a word or a path has a line break in it, or the program's path a sign that
            systemd allows in none.
    """
    if set(command[0]) & set("\\\"'"):
        raise ValueError(f"systemd starts no program with a quote or a backslash: {command[0]}")
    variables = "".join(
        f"Environment={quoted(f'{name}={value}')}\n" for name, value in environment.items()
    )
    bound = "".join(f"BindReadOnlyPaths={quoted_path(path)}\n" for path in readable)
    network = "IPAddressDeny=any\nIPAddressAllow=localhost\n" if loopback else ""
    allowed = " ".join(["AF_INET", "AF_INET6", "AF_UNIX", *families])
    if cache:
        bound += f"CacheDirectory={cache}\nEnvironment=HOME=/var/cache/{cache}\n"
    return f"""\
[Unit]
Description={title.replace("%", "%%")}
Wants=modprobe@nvidia_uvm.service
After=network.target modprobe@nvidia_uvm.service
StartLimitIntervalSec=600
StartLimitBurst=10

[Service]
Type=exec
{_MAKE_NODES}
ExecStart=:{" ".join(quoted(word) for word in command)}
{variables}# Environment=CUDA_VISIBLE_DEVICES=1   another GPU, by slot
Restart=always
RestartSec={restart_seconds}
TimeoutStopSec=30
KillSignal=SIGTERM

DynamicUser=yes
{bound}ProtectSystem=strict
ProtectHome=tmpfs
PrivateTmp=yes
PrivateMounts=yes
ProtectProc=invisible
ProcSubset=all
ProtectClock=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectControlGroups=yes
NoNewPrivileges=yes
RestrictSUIDSGID=yes
RestrictRealtime=yes
RestrictNamespaces=yes
LockPersonality=yes
RemoveIPC=yes
CapabilityBoundingSet=
AmbientCapabilities=
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources @mount
SystemCallErrorNumber=EPERM
RestrictAddressFamilies={allowed}
{network}DevicePolicy=closed
DeviceAllow=char-nvidia rw
DeviceAllow=char-195 rw
DeviceAllow=char-nvidia-frontend rw
DeviceAllow=char-nvidia-uvm rw
UMask=0077

[Install]
WantedBy=multi-user.target
"""


def drop_in(variables: Mapping[str, tuple[str, str]], devices: bool) -> str:
    """A drop-in for a service that is there: variables, each with why it is set.

    ``devices``: nvidia-uvm's module is loaded and the device nodes are made before each start, as
    in :func:`unit`, which a machine that slept needs too.

    Raises:
        ValueError: a value has a line break in it.
    """
    lines = []
    if devices:
        lines += [
            "[Unit]",
            "Wants=modprobe@nvidia_uvm.service",
            "After=modprobe@nvidia_uvm.service",
        ]
        lines += ["", "[Service]", _MAKE_NODES]
    else:
        lines += ["[Service]"]
    for name, (value, why) in variables.items():
        lines += [f"# {why}", f"Environment={quoted(f'{name}={value}')}"]
    return "\n".join(lines) + "\n"


def merged(unit_file: Path, text: str, drop_ins: Sequence[tuple[Path, str]]) -> str:
    """A service and its drop-ins, each under its path, as ``systemctl cat`` prints them."""
    parts = [(unit_file, text), *drop_ins]
    return "\n".join(f"# {path}\n{part.rstrip()}\n" for path, part in parts)


def environment_file(environment: Mapping[str, str], command: Sequence[str]) -> str:
    """Variables as a shell and EnvironmentFile= read them, and the command, as a shell reads it,
    in a comment.

    Raises:
        ValueError: a word or a value has a line break in it.
    """
    for word in (*command, *environment.values()):
        _check(word)
    lines = [f"# {shlex.join(command)}"]
    for name, value in environment.items():
        escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$")
        lines.append(f'{name}="{escaped}"' if set(value) - _PLAIN else f"{name}={value}")
    return "\n".join(lines) + "\n"
