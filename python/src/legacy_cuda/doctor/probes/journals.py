"""What the services with engines wrote to the journal since they were last started, as far as it is
a known text. Only of the running system."""

from __future__ import annotations

from legacy_cuda.catalog.doctor import rules_of
from legacy_cuda.doctor import logs, system_log
from legacy_cuda.doctor.facts import Journal
from legacy_cuda.doctor.place import Place
from legacy_cuda.doctor.probes import engines

_MOST = 4  # services that are asked for


def look(place: Place) -> tuple[Journal, ...]:
    """One for each service of which there is a journal with a known text."""
    found = []
    for service in engines.services(place)[:_MOST] if place.live else ():
        said = system_log.of_unit(service.unit)
        scan = logs.scan((since_start(said.text),), rules_of("program")) if said else None
        if said is not None and scan is not None and scan.hits:
            lines = {line.number: line.text for hit in scan.hits for line in hit.lines}
            texts = tuple(text for _, text in sorted(lines.items()))
            found.append(Journal(service.unit, texts, said.command))
    return tuple(found)


def since_start(text: str) -> str:
    """A journal from where systemd says for the last time that it starts the service, which it says
    of some in two lines."""
    for mark in ("systemd[1]: Starting ", "systemd[1]: Started "):
        at = text.rfind(mark)
        if at >= 0:
            return text[at:]
    return text
