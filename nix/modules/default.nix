# The NixOS modules: `default` has all of them, and each part brings what it needs. `key` keeps the
# module system from taking a part twice.
flake:
let
  part = name: needs: {
    _file = ./. + "/${name}.nix";
    key = "legacy-cuda/${name}";
    imports = needs ++ [ (import (./. + "/${name}.nix") flake) ];
  };
  hardware = part "hardware" [ ];
  parts = {
    inherit hardware;
    builds = part "builds" [ ];
    gateway = part "gateway" [
      parts.ollama
      parts.llama-cpp
      parts.vllm
    ];
    llama-cpp = part "llama-cpp" [ hardware ];
    monitoring = part "monitoring" [ hardware ];
    ollama = part "ollama" [ hardware ];
    refused = part "refused" [ hardware ];
    vllm = part "vllm" [ hardware ];
    web-ui = part "web-ui" [ parts.gateway ];
  };
in
parts // { default.imports = builtins.attrValues parts; }
