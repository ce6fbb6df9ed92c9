"""The names of the fuzz targets, for those who do not need the targets themselves."""

NAMES = (
    "elf",
    "fatbin",
    "zip",
    "ptx",
    "legalize",
    "deb",
    "sdist",
    "gguf",
    "safetensors",
    "doctor-answer",
    "doctor-log",
    "doctor-machine",
)
