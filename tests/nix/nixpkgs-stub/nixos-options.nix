# The options of NixOS that the modules set or read, with upstream's types, and those that upstream's
# own modules set, so that these can take the place of the options here: `upstream` says which do.
# Those that have other names or another shape since 26.05 are there in both: `later` says which.
{ upstream, later }:
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
  unitNames = option (types.listOf (
    types.strMatching "[a-zA-Z0-9@%:_.-]+[.](service|socket|device|mount|automount|swap|target|path|timer|scope|slice)"
  )) [ ];
  anything = option types.anything { };
  lines = option types.lines "";
  list = option (types.listOf types.raw) [ ];
  unlessUpstream = name: options: if upstream ? ${name} then { } else options;
in
{
  imports = builtins.attrValues upstream;

  # any numbers
  config.ids = {
    uids = {
      grafana = 1;
      prometheus = 2;
    };
    gids.prometheus = 2;
  };

  options = {
    assertions = list;
    warnings = strings;
    meta.maintainers = list;
    system.stateVersion = required types.str;
    system.extraDependencies = option (types.listOf types.package) [ ];
    nix = {
      enable = option types.bool true;
      settings = option (types.attrsOf types.anything) { };
      package = option types.package pkgs.nix;
    }
    // unlessUpstream "nix-remote-build" {
      distributedBuilds = off;
      buildMachines = option (types.listOf types.attrs) [ ];
    };
    ids = {
      uids = anything;
      gids = anything;
    };
    nixpkgs.config = anything;
    fileSystems = anything;
    users.users = anything;
    users.groups = anything;
    networking.hostName = required types.str;
    networking.firewall.allowedTCPPorts = option (types.listOf types.port) [ ];
    virtualisation = {
      containers.containersConf.settings = anything;
      podman = {
        enable = off;
        enableNvidia = off;
      };
      docker = {
        enable = off;
        enableNvidia = off;
        package = option types.package pkgs.docker;
        extraPackages = list;
        daemon.settings = anything;
        rootless = {
          daemon.settings = anything;
          extraPackages = list;
        };
      };
    };

    boot = {
      loader.systemd-boot.enable = off;
      kernelPackages = option types.raw pkgs.linuxPackages;
      blacklistedKernelModules = strings;
      extraModprobeConfig = lines;
      extraModulePackages = list;
      kernelModules = strings;
      kernelParams = strings;
    };
    environment = {
      etc = anything;
      systemPackages = list;
    };

    hardware = {
      firmware = list;
      graphics = {
        enable = off;
        extraPackages = list;
        extraPackages32 = list;
      };
    }
    // unlessUpstream "container-toolkit" { nvidia-container-toolkit.enable = off; }
    // unlessUpstream "nvidia" {
      nvidia = {
        open = option (types.nullOr types.bool) null;
        package = option types.package config.boot.kernelPackages.nvidiaPackages.production;
        nvidiaPersistenced = off;
        nvidiaSettings = option types.bool true;
        powerManagement.enable = off;
        moduleParams = option (types.attrsOf (types.attrsOf types.raw)) { };
      };
    };

    services = {
      acpid.enable = off;
      dbus.packages = list;
      openssh.enable = off;
      udev.extraRules = lines;
      xserver = {
        enable = off;
        videoDrivers = strings;
        drivers = list;
        serverLayoutSection = lines;
        displayManager.setupCommands = lines;
      };
    }
    // unlessUpstream "ollama" {
      ollama = {
        enable = off;
        package = required types.package;
        host = option types.str "127.0.0.1";
        port = option types.port 11434;
        loadModels = strings;
        environmentVariables = option (types.attrsOf types.str) { };
        user = option (types.nullOr types.str) null;
        group = option (types.nullOr types.str) config.services.ollama.user;
        ${if later then "modelsDir" else "models"} = option types.str "/var/lib/ollama/models";
      };
    }
    // unlessUpstream "llama-cpp" {
      llama-cpp = {
        enable = off;
        package = required types.package;
      }
      // (
        if later then
          { settings = option (types.attrsOf types.anything) { }; }
        else
          {
            host = option types.str "127.0.0.1";
            port = option types.port 8080;
            # without a default at some revisions
            model = required (types.nullOr types.path);
            modelsDir = required (types.nullOr types.path);
            extraFlags = strings;
          }
      );
    }
    // unlessUpstream "litellm" {
      litellm = {
        enable = off;
        host = option types.str "127.0.0.1";
        port = option types.port 8080;
        settings.model_list = option (types.listOf types.anything) [ ];
      };
    }
    // unlessUpstream "open-webui" {
      open-webui = {
        enable = off;
        host = option types.str "127.0.0.1";
        port = option types.port 8080;
        environment = option (types.attrsOf types.str) { };
      };
    }
    // unlessUpstream "prometheus" {
      prometheus = {
        enable = off;
        listenAddress = option types.str "0.0.0.0";
        port = option types.port 9090;
        scrapeConfigs = option (types.listOf types.attrs) [ ];
        ruleFiles = option (types.listOf types.path) [ ];
      };
    }
    // unlessUpstream "grafana" {
      grafana = {
        enable = off;
        dataDir = option types.path "/var/lib/grafana";
        settings = option (types.attrsOf (types.attrsOf types.anything)) { };
        provision = {
          enable = off;
          datasources.settings = option (types.nullOr types.attrs) null;
          dashboards.settings = option (types.nullOr types.attrs) null;
        };
      };
    }
    // unlessUpstream "nix-serve" {
      nix-serve = {
        enable = off;
        bindAddress = option types.str "0.0.0.0";
        port = option types.port 5000;
        secretKeyFile = option (types.nullOr types.str) null;
      };
    };

    systemd = {
      package = option types.package pkgs.systemd;
      packages = list;
      tmpfiles.rules = strings;
      services = option (types.attrsOf (
        types.submodule {
          options = {
            enable = option types.bool true;
            description = option types.str "";
            after = unitNames;
            before = unitNames;
            bindsTo = unitNames;
            requires = unitNames;
            requiredBy = unitNames;
            wants = unitNames;
            wantedBy = unitNames;
            path = list;
            preStart = lines;
            script = lines;
            environment = option (types.attrsOf types.str) { };
            serviceConfig = option (types.attrsOf types.anything) { };
            unitConfig = option (types.attrsOf types.anything) { };
          };
        }
      )) { };
    };
  };
}
