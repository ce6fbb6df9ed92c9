# Engines of the catalog that no service is made of: switching one on says why.
{ catalog, stacks, ... }:
{ config, lib, ... }:
let
  inherit (config.hardware.legacy-cuda) gpus;
  served = [
    # a library, no server
    "torch"
    "llama-cpp"
    "ollama"
    "vllm"
  ];
  names = lib.filter (name: !lib.elem name served) (builtins.attrNames catalog.engines);
  answer =
    engine:
    let
      found = stacks.resolveFor engine gpus;
    in
    if gpus == [ ] then
      "services.legacy-cuda.${engine}: hardware.legacy-cuda.gpus is empty"
    else if found ? refusal then
      stacks.sentence found.refusal
    else
      "services.legacy-cuda.${engine}: there is no service of it yet";
in
{
  options.services.legacy-cuda = lib.genAttrs names (name: {
    enable = lib.mkEnableOption "${catalog.engines.${name}.title}, of which there is no service here: the answer is why";
  });

  config.assertions = map (engine: {
    assertion = !config.services.legacy-cuda.${engine}.enable;
    message = answer engine;
  }) names;
}
