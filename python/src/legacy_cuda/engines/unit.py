"""A service of systemd for an engine: unprivileged, without a view of the system but its model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./,:=+@[]")


def quoted(word: str) -> str:
    """A word as systemd reads it in ExecStart= and Environment=."""
    for sign in "\n\r\0":
        if sign in word:
            raise ValueError("a line break in an argument of a service")
    escaped = word.replace("%", "%%").replace("$", "$$")
    if word and set(escaped) <= _PLAIN:
        return escaped
    return '"' + escaped.replace("\\", "\\\\").replace('"', '\\"') + '"'


def unit(
    title: str,
    command: Sequence[str],
    environment: Mapping[str, str],
    readable: Sequence[Path],
    restart_seconds: int = 5,
    loopback: bool = True,
) -> str:
    """The text of a service.

    The devices are those of NVIDIA's driver alone, and only loopback can be reached unless told
    otherwise. ``nvidia-modprobe`` makes nvidia-uvm's device, which a service without privileges
    cannot; a resumed machine needs it again, so it runs before each start.

    Args:
        title: what it is, one line.
        command: the program, by its full path, and its arguments.
        environment: variables for it.
        readable: files and folders that it reads beside the system's own.
        restart_seconds: how long after it ended it is started again.
        loopback: whether it listens there only.
    """
    variables = "".join(
        f"Environment={quoted(f'{name}={value}')}\n" for name, value in environment.items()
    )
    bound = "".join(f"BindReadOnlyPaths={quoted(str(path))}\n" for path in readable)
    network = "IPAddressDeny=any\nIPAddressAllow=localhost\n" if loopback else ""
    return f"""\
[Unit]
Description={title.replace("%", "%%")}
After=network.target
StartLimitIntervalSec=600
StartLimitBurst=10

[Service]
Type=exec
ExecStartPre=-+/usr/bin/nvidia-modprobe -c 0 -u
ExecStart={" ".join(quoted(word) for word in command)}
{variables}Restart=always
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
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
{network}DevicePolicy=closed
DeviceAllow=char-nvidia rw
DeviceAllow=char-nvidiactl rw
DeviceAllow=char-nvidia-frontend rw
DeviceAllow=char-nvidia-uvm rw
UMask=0077

[Install]
WantedBy=multi-user.target
"""


def environment_file(environment: Mapping[str, str], command: Sequence[str]) -> str:
    """Variables as a shell and EnvironmentFile= read them, and the command in a comment."""
    lines = [f"# {' '.join(quoted(word) for word in command)}"]
    for name, value in environment.items():
        escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$")
        lines.append(f'{name}="{escaped}"' if set(value) - _PLAIN else f"{name}={value}")
    return "\n".join(lines) + "\n"
