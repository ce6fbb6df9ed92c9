# Open WebUI for the engines of this machine.
_:
{
  config,
  lib,
  ...
}:
let
  inherit (lib) mkIf;

  listen = import ./listen.nix lib;
  cfg = config.services.legacy-cuda.web-ui;
  inherit (config.services.legacy-cuda)
    gateway
    ollama
    llama-cpp
    vllm
    ;
  # The gateway has everything behind it; vLLM and llama.cpp speak the same protocol.
  openai = lib.findFirst (service: service.serves or service.enable) null [
    gateway
    vllm
    llama-cpp
  ];
in
{
  options.services.legacy-cuda.web-ui = listen.options 3000 // {
    enable = lib.mkEnableOption "Open WebUI for the engines of this machine";
  };

  config = mkIf cfg.enable {
    assertions = [
      {
        assertion = ollama.enable || openai != null;
        message = "services.legacy-cuda.web-ui: no engine of services.legacy-cuda is switched on";
      }
    ];

    services.open-webui = {
      enable = true;
      inherit (cfg) host port;
      environment = {
        ANONYMIZED_TELEMETRY = "False";
        DO_NOT_TRACK = "True";
        SCARF_NO_ANALYTICS = "True";
        ENABLE_OLLAMA_API = if ollama.enable then "True" else "False";
        ENABLE_OPENAI_API = if openai == null then "False" else "True";
      }
      // lib.optionalAttrs ollama.enable { OLLAMA_BASE_URL = listen.at ollama; }
      // lib.optionalAttrs (openai != null) { OPENAI_API_BASE_URL = "${listen.at openai}/v1"; };
    };
  };
}
