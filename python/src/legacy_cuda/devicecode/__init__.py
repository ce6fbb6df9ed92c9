"""Reading device code out of ELF files, fat binaries, cubins, PTX and wheels; nothing else.

Everything here is a reader: it takes bytes and never executes, writes or trusts them.
"""

from legacy_cuda.devicecode.errors import DeviceCodeError
from legacy_cuda.devicecode.fatbin import Container, ContainerScanner, Entry
from legacy_cuda.devicecode.scan import FileCode, scan_file, scan_tree, scan_wheel

__all__ = [
    "Container",
    "ContainerScanner",
    "DeviceCodeError",
    "Entry",
    "FileCode",
    "scan_file",
    "scan_tree",
    "scan_wheel",
]
