# Packages that are compiled once: a machine that builds for others and hands out what it has, machines
# that others build for, and where they fetch from.
{ stacks, packaged, ... }:
{
  config,
  lib,
  ...
}:
let
  inherit (lib) mkIf mkOption types;

  listen = import ./listen.nix lib;
  cfg = config.services.legacy-cuda.builds;

  # Of each card what is to be had for it.
  packagesOf =
    gpu:
    map (engine: (packaged.packagesFor [ gpu ]).${engine}) (
      lib.filter (engine: packaged.refusalOf engine [ gpu ] == null) packaged.engines
    );
in
{
  options.services.legacy-cuda.builds = {
    machines = mkOption {
      type = types.listOf (
        types.submodule {
          options = {
            hostName = mkOption {
              type = types.str;
              description = "The machine that builds.";
            };
            sshUser = mkOption {
              type = types.nullOr types.str;
              default = null;
              description = "The account there; it has to be among its `nix.settings.trusted-users`.";
            };
            sshKey = mkOption {
              type = types.nullOr types.str;
              default = null;
              example = "/var/lib/secrets/ssh";
              description = "The private key for it, a file of this machine.";
            };
            maxJobs = mkOption {
              type = types.ints.positive;
              default = 1;
              description = "Packages that it builds at a time; each uses all of its processors.";
            };
          };
        }
      );
      default = [ ];
      example = [
        {
          hostName = "10.0.0.1";
          sshUser = "builds";
          sshKey = "/var/lib/secrets/ssh";
        }
      ];
      description = "Machines that compile for this one.";
    };

    caches = mkOption {
      type = types.attrsOf types.str;
      default = { };
      example = {
        "http://example.org:5000" = "builds-1:bXkgcHVibGljIGtleQ==";
      };
      description = "Where to fetch what was compiled elsewhere: addresses and their public keys.";
    };

    serve = listen.options 5000 // {
      enable = lib.mkEnableOption "handing out this machine's packages to others (nix-serve)";

      secretKeyFile = mkOption {
        type = types.str;
        example = "/var/lib/secrets/builds";
        description = ''
          The key that packages are signed with, made by
          `nix-store --generate-binary-cache-key NAME SECRET-FILE PUBLIC-FILE`.
        '';
      };

      gpus = mkOption {
        type = types.listOf (types.enum stacks.devShellNames);
        default = [ ];
        example = [
          "p40"
          "k80"
        ];
        description = ''
          Cards whose engines are compiled with this machine's configuration and kept, so that the others
          find them. This machine needs none of the cards.
        '';
      };
    };
  };

  config = lib.mkMerge [
    (mkIf (cfg.machines != [ ]) {
      nix = {
        distributedBuilds = true;
        # PyTorch and vLLM ask for a machine with this feature.
        buildMachines = map (
          machine:
          machine
          // {
            systems = [ "x86_64-linux" ];
            supportedFeatures = [ "big-parallel" ];
          }
        ) cfg.machines;
        # They fetch what there is by themselves.
        settings.builders-use-substitutes = true;
      };
    })
    (mkIf (cfg.caches != { }) {
      nix.settings = {
        substituters = builtins.attrNames cfg.caches;
        trusted-public-keys = builtins.attrValues cfg.caches;
      };
    })
    (mkIf cfg.serve.enable {
      services.nix-serve = {
        enable = true;
        bindAddress = cfg.serve.host;
        inherit (cfg.serve) port secretKeyFile;
      };

      system.extraDependencies = lib.concatMap packagesOf cfg.serve.gpus;

      # NixOS's module leaves all of it open. The daemon's socket and a port are what it needs.
      systemd.services.nix-serve.serviceConfig =
        builtins.removeAttrs (import ./hardening.nix) [ "DeviceAllow" ]
        // {
          PrivateDevices = true;
          PrivateNetwork = false;
          IPAddressDeny = [ ];
          RestrictAddressFamilies = [
            "AF_INET"
            "AF_INET6"
            "AF_UNIX"
          ];
          ProcSubset = "pid";
          SystemCallFilter = [
            "@system-service"
            "~@privileged"
          ];
        };
    })
  ];
}
