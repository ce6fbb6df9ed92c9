# Open WebUI for the engines of this machine.
_:
{
  config,
  lib,
  ...
}:
let
  inherit (lib) mkIf mkOption types;

  cfg = config.services.legacy-cuda.web-ui;
  inherit (config.services.legacy-cuda) gateway ollama llama-cpp;
  at = service: "http://${service.host}:${toString service.port}";
  # The gateway has everything behind it; llama.cpp speaks the same protocol.
  openai =
    if gateway.enable then
      gateway
    else if llama-cpp.enable then
      llama-cpp
    else
      null;
in
{
  options.services.legacy-cuda.web-ui = {
    enable = lib.mkEnableOption "Open WebUI for the engines of this machine";

    host = mkOption {
      type = types.str;
      default = "127.0.0.1";
      description = "The address to listen on.";
    };

    port = mkOption {
      type = types.port;
      default = 3000;
      description = "The port to listen on.";
    };
  };

  config = mkIf cfg.enable {
    assertions = [
      {
        assertion = ollama.enable || llama-cpp.enable;
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
      // lib.optionalAttrs ollama.enable { OLLAMA_BASE_URL = at ollama; }
      // lib.optionalAttrs (openai != null) { OPENAI_API_BASE_URL = "${at openai}/v1"; };
    };
  };
}
