# llama.cpp's server with code for the cards of this machine, on top of NixOS's own module.
{
  catalog,
  stacks,
  packaged,
}:
{
  config,
  lib,
  options,
  ...
}:
let
  inherit (lib) mkIf mkOption types;

  listen = import ./listen.nix lib;
  notInAHome = import ./homes.nix lib;
  flags = import ./flags.nix lib;
  cfg = config.services.legacy-cuda.llama-cpp;
  inherit (config.hardware.legacy-cuda) gpus;
  refusal = if gpus == [ ] then null else packaged.refusalOf "llama-cpp" gpus;
  architectures = map (
    name: catalog.capabilities.${catalog.gpus.${name}.capability}.architecture
  ) gpus;

  settings = {
    n-gpu-layers = 99;
  }
  # seven times slower there with a long context (ollama37)
  // lib.optionalAttrs (lib.elem "Kepler" architectures) { flash-attn = "off"; }
  // cfg.settings;

  # NixOS 26.05 has an option for each of a few settings and a list of flags; later there is
  # `settings` for all of them.
  upstream = options.services.llama-cpp;
  perOption = {
    host = settings.host or cfg.host;
    port = settings.port or cfg.port;
    model = settings.model or cfg.model;
    modelsDir = settings.models-dir or cfg.modelsDir;
    extraFlags = flags (
      builtins.removeAttrs settings [
        "host"
        "port"
        "model"
        "models-dir"
      ]
    );
  };
in
{
  options.services.legacy-cuda.llama-cpp = listen.options 8080 // {
    enable = lib.mkEnableOption "llama.cpp's server with code for `hardware.legacy-cuda.gpus`";

    package = mkOption {
      type = types.package;
      default = (packaged.packagesFor gpus).llama-cpp;
      defaultText = lib.literalMD "llama.cpp compiled for the capabilities of the cards";
      description = "The llama.cpp to run.";
    };

    model = mkOption {
      # The server starts in a folder of its own, and the option of NixOS 26.05 behind this is a path.
      type = types.nullOr (types.strMatching "/.+");
      default = null;
      example = "/srv/models/model.gguf";
      description = "The model to load. Either this or `modelsDir` has to be set.";
    };

    modelsDir = mkOption {
      type = types.nullOr (types.strMatching "/.+");
      default = null;
      example = "/srv/models";
      description = "A folder with models, which a request chooses from.";
    };

    settings = mkOption {
      type = types.attrsOf types.anything;
      default = { };
      example = {
        ctx-size = 8192;
      };
      description = "Options of llama-server without their dashes, on top of those that suit the cards.";
    };
  };

  config = mkIf cfg.enable {
    assertions = [
      {
        assertion = gpus != [ ];
        message = "services.legacy-cuda.llama-cpp: hardware.legacy-cuda.gpus is empty";
      }
      {
        assertion = refusal == null;
        message = stacks.sentence refusal;
      }
      (notInAHome "services.legacy-cuda.llama-cpp.model" cfg.model)
      (notInAHome "services.legacy-cuda.llama-cpp.modelsDir" cfg.modelsDir)
      {
        assertion = (cfg.model == null) != (cfg.modelsDir == null);
        message = "services.legacy-cuda.llama-cpp: set either model or modelsDir";
      }
    ];

    services.llama-cpp = mkIf (refusal == null) (
      {
        enable = true;
        inherit (cfg) package;
      }
      // (
        if upstream ? settings then
          {
            settings = {
              inherit (cfg) host port;
            }
            // lib.optionalAttrs (cfg.model != null) { inherit (cfg) model; }
            // lib.optionalAttrs (cfg.modelsDir != null) { models-dir = cfg.modelsDir; }
            // settings;
          }
        else
          perOption
      )
    );

    systemd.services.llama-cpp = mkIf (refusal == null) {
      requires = [ "legacy-cuda-ready.service" ];
      after = [ "legacy-cuda-ready.service" ];
      # as nvidia-smi numbers them
      environment.CUDA_DEVICE_ORDER = "PCI_BUS_ID";
      # NixOS's module leaves devices open.
      serviceConfig = {
        DevicePolicy = "closed";
        DeviceAllow = (import ./hardening.nix).DeviceAllow ++ [ "char-nvidia-uvm rw" ];
        # NixOS's "pid" hides /proc/driver/nvidia. CUDA does not start without it, and llama-server
        # serves from the CPU then.
        ProcSubset = lib.mkForce "all";
        UMask = "0077";
      };
    };

    hardware.legacy-cuda.resumeRepair.units = [ "llama-cpp.service" ];
  };
}
