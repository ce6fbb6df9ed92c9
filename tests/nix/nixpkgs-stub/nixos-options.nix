# The options of NixOS that the modules set or read, with upstream's types. What upstream makes of them
# is not here.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types;
  option = type: default: mkOption { inherit type default; };
  required = type: mkOption { inherit type; };
  off = option types.bool false;
  strings = option (types.listOf types.str) [ ];
in
{
  options = {
    assertions = option (types.listOf types.raw) [ ];
    warnings = strings;
    system.stateVersion = required types.str;
    nixpkgs.config = option types.anything { };
    fileSystems = option types.anything { };
    networking.hostName = required types.str;
    networking.firewall.allowedTCPPorts = option (types.listOf types.port) [ ];
    virtualisation.podman.enable = off;
    virtualisation.docker.enable = off;

    boot = {
      loader.systemd-boot.enable = off;
      kernelPackages = option types.raw pkgs.linuxPackages;
      blacklistedKernelModules = strings;
    };
    environment.etc = option (types.attrsOf (
      types.submodule { options.text = required types.lines; }
    )) { };

    hardware = {
      graphics.enable = off;
      nvidia-container-toolkit.enable = off;
      nvidia = {
        open = option (types.nullOr types.bool) null;
        package = option types.package config.boot.kernelPackages.nvidiaPackages.production;
        nvidiaPersistenced = off;
        nvidiaSettings = option types.bool true;
        powerManagement.enable = off;
      };
    };

    services = {
      xserver.videoDrivers = strings;
      ollama = {
        enable = off;
        package = required types.package;
        host = option types.str "127.0.0.1";
        port = option types.port 11434;
        loadModels = strings;
        modelsDir = option types.str "/var/lib/ollama/models";
        environmentVariables = option (types.attrsOf types.str) { };
        user = option (types.nullOr types.str) null;
        group = option (types.nullOr types.str) config.services.ollama.user;
      };
      llama-cpp = {
        enable = off;
        package = required types.package;
        settings = option (types.attrsOf types.anything) { };
      };
      litellm = {
        enable = off;
        host = option types.str "127.0.0.1";
        port = option types.port 8080;
        settings.model_list = option (types.listOf types.anything) [ ];
      };
      open-webui = {
        enable = off;
        host = option types.str "127.0.0.1";
        port = option types.port 8080;
        environment = option (types.attrsOf types.str) { };
      };
    };

    systemd = {
      package = option types.package pkgs.systemd;
      tmpfiles.rules = strings;
      services = option (types.attrsOf (
        types.submodule {
          options = {
            description = option types.str "";
            after = strings;
            requires = strings;
            wantedBy = strings;
            environment = option (types.attrsOf types.str) { };
            serviceConfig = option (types.attrsOf types.anything) { };
          };
        }
      )) { };
    };
  };
}
