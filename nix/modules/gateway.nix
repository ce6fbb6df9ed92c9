# LiteLLM in front of the engines of this machine: one address, and a name for each model.
_:
{
  config,
  lib,
  ...
}:
let
  inherit (lib) mkIf;

  listen = import ./listen.nix lib;
  cfg = config.services.legacy-cuda.gateway;
  inherit (config.services.legacy-cuda) ollama llama-cpp vllm;
  # What vLLM calls its model; of several names, which are a flag each, it takes the last.
  served = lib.last (lib.toList (vllm.settings.served-model-name or vllm.model));
  # llama.cpp and vLLM speak the same protocol.
  openai = name: model: service: {
    model_name = name;
    litellm_params = {
      model = "openai/${model}";
      api_base = "${listen.at service}/v1";
      # the client of this protocol wants one
      api_key = "none";
    };
  };
in
{
  options.services.legacy-cuda.gateway = listen.options 4000 // {
    enable = lib.mkEnableOption "LiteLLM in front of Ollama, llama.cpp and vLLM of this machine";
  };

  config = mkIf cfg.enable {
    assertions = [
      {
        assertion = llama-cpp.enable || vllm.serves || (ollama.enable && ollama.models != [ ]);
        message = "services.legacy-cuda.gateway: nothing to offer; switch llama-cpp or vllm on, or ollama with models";
      }
    ];

    services.litellm = {
      enable = true;
      inherit (cfg) host port;
      settings.model_list =
        lib.optionals ollama.enable (
          map (model: {
            model_name = model;
            litellm_params = {
              model = "ollama_chat/${model}";
              api_base = listen.at ollama;
            };
          }) ollama.models
        )
        ++ lib.optional llama-cpp.enable (openai "llama-cpp" "llama-cpp" llama-cpp)
        ++ lib.optional vllm.serves (openai served served vllm);
    };

    # What NixOS's module leaves open; it needs no device and no privilege.
    systemd.services.litellm.serviceConfig = {
      CapabilityBoundingSet = [ "" ];
      NoNewPrivileges = true;
      PrivateDevices = true;
      PrivateMounts = true;
      ProtectSystem = "strict";
      RemoveIPC = true;
      RestrictSUIDSGID = true;
      SystemCallFilter = [
        "@system-service"
        "~@privileged"
      ];
    };
  };
}
