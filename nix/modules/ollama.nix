# Ollama with code for the cards of this machine, on top of NixOS's own module.
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
  inherit (lib)
    mkDefault
    mkIf
    mkOption
    types
    ;

  listen = import ./listen.nix lib;
  notInAHome = import ./homes.nix lib;
  cfg = config.services.legacy-cuda.ollama;
  inherit (config.hardware.legacy-cuda) gpus;
  refusal = if gpus == [ ] then null else packaged.refusalOf "ollama" gpus;
  dies = lib.foldl' (sum: name: sum + catalog.gpus.${name}.dies) 0 gpus;
in
{
  options.services.legacy-cuda.ollama = listen.options 11434 // {
    enable = lib.mkEnableOption "Ollama with code for `hardware.legacy-cuda.gpus`";

    package = mkOption {
      type = types.package;
      default = (packaged.packagesFor gpus).ollama;
      defaultText = lib.literalMD "Ollama compiled for the capabilities of the cards";
      description = "The Ollama to run.";
    };

    models = mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [ "llama3.2:3b" ];
      description = "Models to download when the service has started.";
    };

    modelsDir = mkOption {
      type = types.nullOr (types.strMatching "/.+");
      default = null;
      example = "/srv/models";
      description = ''
        Where models are kept; null is upstream's own place. The folder is made and
        belongs to the user `ollama`.
      '';
    };

    environment = mkOption {
      type = types.attrsOf types.str;
      default = { };
      example = {
        OLLAMA_KEEP_ALIVE = "5m";
      };
      description = "Environment variables, on top of those that suit the cards.";
    };
  };

  config = mkIf cfg.enable {
    assertions = [
      {
        assertion = gpus != [ ];
        message = "services.legacy-cuda.ollama: hardware.legacy-cuda.gpus is empty";
      }
      {
        assertion = refusal == null;
        message = stacks.sentence refusal;
      }
      (notInAHome "services.legacy-cuda.ollama.modelsDir" cfg.modelsDir)
    ];

    services.ollama = mkIf (refusal == null) (
      {
        enable = true;
        inherit (cfg) package host port;
        loadModels = cfg.models;
        environmentVariables = {
          # as nvidia-smi numbers them
          CUDA_DEVICE_ORDER = "PCI_BUS_ID";
          OLLAMA_FLASH_ATTENTION = "1";
          # reading a model again takes longer than answering
          OLLAMA_KEEP_ALIVE = "1h";
        }
        // lib.optionalAttrs (dies > 1) { OLLAMA_SCHED_SPREAD = "1"; }
        // cfg.environment;
      }
      // lib.optionalAttrs (cfg.modelsDir != null) {
        # its name in NixOS 26.05 is `models`
        ${if options.services.ollama ? modelsDir then "modelsDir" else "models"} = cfg.modelsDir;
        user = mkDefault "ollama";
      }
    );

    systemd = mkIf (refusal == null) {
      tmpfiles.rules = lib.optional (
        cfg.modelsDir != null
      ) "d ${cfg.modelsDir} 0750 ${config.services.ollama.user} ${config.services.ollama.group} -";

      services.ollama = {
        requires = [ "legacy-cuda-ready.service" ];
        after = [ "legacy-cuda-ready.service" ];
        serviceConfig = {
          Restart = "on-failure";
          RestartSec = 10;
        };
      };

      # NixOS's module leaves all of it open, and it only asks the server for something.
      services.ollama-model-loader = mkIf (cfg.models != [ ]) {
        serviceConfig = builtins.removeAttrs (import ./online.nix) [ "MemoryDenyWriteExecute" ];
      };
    };

    hardware.legacy-cuda.resumeRepair.units = [ "ollama.service" ];
  };
}
