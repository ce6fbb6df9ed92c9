"""Texts without what says whose machine it is: names, addresses, serial numbers, keys. Pure.

What is taken out is replaced by a word in angle brackets that says what it was. Where it is in
doubt it is taken out: a number with four parts is an address, but behind the name of one of
NVIDIA's packages.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from legacy_cuda.doctor.diagnosis import Cause, Diagnosis
from legacy_cuda.doctor.facts import Failure
from legacy_cuda.doctor.rules import Finding

KEPT = frozenset({"packages", "version", "pci_id", "address"})
"""Keys of the facts whose values are read by patterns that let nothing else through."""
_SHORTEST = 2  # of a name that is looked for
_LAST_PERSON = 60000  # UID_MAX of login.defs(5); people begin with 1000


@dataclass(frozen=True, slots=True)
class Known:
    """What this machine is called, and who its users are."""

    hosts: tuple[str, ...] = ()
    users: tuple[str, ...] = ()


_SECRET = r"(?:key|token|secret|passw|passphrase|credential|auth|cookie|session)"
_VALUE = r"""(\[[^\]\n]*\]?|"[^"\n]*"?|'[^'\n]*'?|\S+)"""
_AFTER = tuple(
    re.compile(pattern + _VALUE, re.IGNORECASE)
    for pattern in (
        rf"(--?[\w-]{{0,60}}{_SECRET}[\w-]{{0,60}}(?:\s{{1,9}}|=))",
        rf"""({_SECRET}[\w-]{{0,60}}["']?\s{{0,9}}[:=]\s{{0,9}}(?:(?:bearer|basic)\s{{1,9}})?)""",
        r"(\b(?:bearer|basic)\s+(?=\S{8}))",
    )
)
_PEM = re.compile(r"-----BEGIN [A-Z0-9 ]+-----.*?(?:-----END [A-Z0-9 ]+-----|\Z)", re.DOTALL)
_SSH = re.compile(r"\b(?:ssh-\w+|ecdsa-sha2-\S+|sk-ssh-\S+)\s+AAAA[A-Za-z0-9+/=]+(?:\s+\S+@\S+)?")
_TOKEN = re.compile(
    r"\b(?:hf_|sk-|pk-|gh[opsu]_|github_pat_|glpat-|xox[abprs]-|AKIA|ASIA|AIza|nvapi-|gsk_|r8_|"
    r"dckr_pat_|npm_|pypi-|eyJ)[\w.-]{8,}"
)
_URL = re.compile(r"""\b([a-z][a-z0-9+.-]{1,15}://)([^\s/"'<>]+)""", re.IGNORECASE)
_MAIL = re.compile(r"(?<![\w.@/-])[\w.+-]+@[\w-]+(?:\.[\w-]+)*")
_UUID = re.compile(
    r"(?:\b(?:GPU|MIG)-)?[0-9a-f]{8}(?:-?[0-9a-f]{4}){3}-?[0-9a-f]{12}", re.IGNORECASE
)
_MAC = re.compile(
    r"(?<![0-9a-f])(?<![0-9a-f][:-])[0-9a-f]{2}([:-])[0-9a-f]{2}(?:\1[0-9a-f]{2}){4,6}"
    r"(?![0-9a-f]|[:-][0-9a-f])",
    re.IGNORECASE,
)
_IP4 = re.compile(r"(nvidia-[a-z-]+-cu\d\d(?: |==))?(?<![\d.])\d{1,3}(?:\.\d{1,3}){3}(?!\d|\.\d)")
_IP6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f:.]{2,45}(?:%\w+)?(?![\w:])")
_SERIAL = re.compile(
    r"(\b(?:serial(?:[ _-]?(?:number|no\.?|#))?|s/n|asset[ _-]?tag|board[ _-]?id|machine[ _-]?id)"
    r"""["']?\s*[:=#]?\s*["']?)([A-Za-z0-9./-]*\d[A-Za-z0-9./-]*)""",
    re.IGNORECASE,
)
_LONG_NUMBER = re.compile(r"(?<![\w.])\d{12,}(?!\w|\.\d)")
_HOME = re.compile(r"""(/(?:home|Users|run/media|media)/)([^/\s:"',;)]+)""")
_LONG = re.compile(r"[A-Za-z0-9+_=-]{32,}")
_BASE64 = re.compile(r"(?<![A-Za-z0-9+/=])[A-Za-z0-9+/]{40,}={0,2}")
_SYSLOG = re.compile(
    r"^(\s*(?:\w{3} [ \d]\d \d\d:\d\d:\d\d|\d{4}-\d\d-\d\dT[\d:.,+Z-]+) )(\S+)"
    r"(?= [\w./()@-]+(?:\[\d+\])?: )",
    re.MULTILINE,
)
_BUILDER = re.compile(r"(\bLinux version \S+ )\([^)\n]*\)")
_OPEN_HOSTS = frozenset({"localhost", "127.0.0.1", "0.0.0.0", "[::1]", "[::]"})


def redacted(text: str, known: Known) -> str:
    """A text without keys, addresses, serial numbers, homes, and the names that are known."""
    text = _PEM.sub("<key>", text)
    text = _SSH.sub("<key>", text)
    text = _BUILDER.sub(r"\1(<builder>)", text)
    for pattern in _AFTER:
        text = pattern.sub(r"\1<secret>", text)
    text = _TOKEN.sub("<key>", text)
    text = _URL.sub(_without_host, text)
    text = _MAIL.sub("<mail>", text)
    text = _UUID.sub("<uuid>", text)
    text = _MAC.sub("<mac>", text)
    text = _SERIAL.sub(r"\1<serial>", text)
    text = _IP4.sub(lambda match: match[0] if match[1] else _if_address(match), text)
    text = _IP6.sub(lambda match: _if_address(match) if ":" in match[0] else match[0], text)
    text = _LONG_NUMBER.sub("<number>", text)
    text = _HOME.sub(r"\1<user>", text)
    text = _SYSLOG.sub(r"\1<host>", text)
    text = _LONG.sub(_if_random, text)
    text = _BASE64.sub(_if_random, text)
    for names, word, behind in ((known.hosts, "host", r"(?:\.[\w-]+)*"), (known.users, "user", "")):
        for name in sorted(names, key=len, reverse=True):
            if len(name) >= _SHORTEST:
                whole = rf"(?<![A-Za-z0-9<]){re.escape(name)}{behind}(?![A-Za-z0-9>])"
                text = re.sub(whole, f"<{word}>", text, flags=re.IGNORECASE)
    return text


def _without_host(match: re.Match[str]) -> str:
    """The host of an address is taken out, with a name and a password before it."""
    host = match[2]
    name = host if host.startswith("[") else host.partition(":")[0]
    return match[0] if name in _OPEN_HOSTS else f"{match[1]}<host>"


def _if_address(match: re.Match[str]) -> str:
    text, percent, _ = match[0].partition("%")
    for candidate in (text, text.rstrip(".:")):
        try:
            address = ipaddress.ip_address(candidate)
        except ValueError:
            continue
        kept = address.is_loopback or address.is_unspecified
        behind = text[len(candidate) :] if not percent else ""
        return match[0] if kept else f"<address>{behind}"
    return match[0]


def _if_random(match: re.Match[str]) -> str:
    """Long words with digits and letters are keys, hashes and the like; names of files are not."""
    text = match[0]
    digits = sum(sign.isdigit() for sign in text)
    letters = sum(sign.isalpha() for sign in text)
    return "<long>" if digits >= 3 and letters >= 3 else text


def document(value: Any, known: Known, key: str = "") -> Any:
    """A JSON document with every text in it redacted, but for the values of :data:`KEPT`."""
    if isinstance(value, Mapping):
        return {name: document(item, known, name) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [document(item, known, key) for item in value]
    return redacted(value, known) if isinstance(value, str) and key not in KEPT else value


def diagnosis(found: Diagnosis, known: Known) -> Diagnosis:
    """A diagnosis with its evidence redacted. What comes from the catalog stays as it is."""

    def of(item: Finding) -> Finding:
        return replace(
            item,
            evidence=tuple(
                replace(seen, text=redacted(seen.text, known), source=redacted(seen.source, known))
                for seen in item.evidence
            ),
        )

    return Diagnosis(
        tuple(Cause(of(cause.finding), tuple(map(of, cause.follows))) for cause in found.causes),
        tuple(redacted(text, known) for text in found.fine),
        tuple(Failure(item.probe, redacted(item.what, known)) for item in found.failures),
        tuple(redacted(text, known) for text in found.not_judged),
        tuple(redacted(text, known) for text in found.now),
    )


def people(passwd: str) -> Iterator[str]:
    """The accounts of people in the text of a passwd(5): their names, and those behind them."""
    for line in passwd.splitlines():
        fields = line.split(":")
        number = fields[2] if len(fields) >= 7 else ""
        if re.fullmatch(r"[1-9][0-9]{3,4}", number) and int(number) <= _LAST_PERSON:
            yield fields[0]
            yield from (name for name in (fields[4].partition(",")[0].strip(),) if name)
