# What a unit of ours that only talks to the driver forbids itself. A unit adds what it needs. The
# same file is behind `legacy-cuda monitor --systemd`.
builtins.fromTOML (builtins.readFile ../../python/src/legacy_cuda/monitor/scripts/hardening.toml)
