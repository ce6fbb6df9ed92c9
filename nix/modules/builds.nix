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

  # Of the cards of a machine what is to be had for them.
  packagesOf =
    gpus:
    map (engine: (packaged.packagesFor gpus).${engine}) (
      lib.filter (engine: packaged.refusalOf engine gpus == null) packaged.engines
    );
  card = types.enum stacks.devShellNames;
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
            publicHostKey = mkOption {
              type = types.nullOr types.str;
              default = null;
              example = "c3NoLWVkMjU1MTkgQUFBQQ==";
              description = ''
                Its key, as `base64 -w0 /etc/ssh/ssh_host_ed25519_key.pub` prints it there. Without it root's
                `known_hosts` has to have it.
              '';
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
      enable = lib.mkEnableOption "handing out this machine's store to all who reach the port (nix-serve)";

      secretKeyFile = mkOption {
        type = types.str;
        example = "/var/lib/secrets/builds";
        description = ''
          The key that packages are signed with, made by
          `nix-store --generate-binary-cache-key NAME SECRET-FILE PUBLIC-FILE`.
        '';
      };

      gpus = mkOption {
        type = types.listOf (types.either card (types.nonEmptyListOf card));
        default = [ ];
        example = [
          "k80"
          [
            "p100"
            "p40"
          ]
        ];
        description = ''
          Cards whose engines are compiled with this machine's configuration and kept, so that the others
          find them: a card, or a list of the cards of one machine, whose packages are other ones where
          their capabilities differ. This machine needs none of the cards.
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

      system.extraDependencies = lib.concatMap (gpus: packagesOf (lib.toList gpus)) cfg.serve.gpus;

      # NixOS's module leaves all of it open. The daemon's socket and a port are what it needs.
      systemd.services.nix-serve.serviceConfig = import ./online.nix // {
        ProcSubset = "pid";
      };
    })
  ];
}
