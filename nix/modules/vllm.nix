# vLLM with code for the cards of this machine, and its part of a cluster. NixOS has no module for it.
{
  catalog,
  stacks,
  packaged,
}:
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkIf mkOption types;

  listen = import ./listen.nix lib;
  notInAHome = import ./homes.nix lib;
  flags = import ./flags.nix lib;
  hardening = import ./hardening.nix;
  cfg = config.services.legacy-cuda.vllm;
  inherit (config.hardware.legacy-cuda) gpus;
  refusal = if gpus == [ ] then null else packaged.refusalOf "vllm" gpus;
  dies = lib.foldl' (sum: name: sum + catalog.gpus.${name}.dies) 0 gpus;

  inherit (cfg) cluster;
  inCluster = cluster.role != null;
  # a worker of a cluster answers nobody
  serves = cluster.role != "worker";
  address = "${
    if cluster.role == "head" then cluster.address else cluster.head
  }:${toString cluster.port}";

  settings = {
    inherit (cfg) host port;
    # torch.compile has not been proven on such a card
    enforce-eager = true;
  }
  # without the first vLLM uses one of them; its own all-reduce needs cards that reach each other's
  # memory, and NCCL does not
  // lib.optionalAttrs (dies > 1) {
    tensor-parallel-size = dies;
    disable-custom-all-reduce = true;
  }
  // lib.optionalAttrs (cluster.role == "head") { distributed-executor-backend = "ray"; }
  // cfg.settings;

  environment = {
    # as nvidia-smi numbers them
    CUDA_DEVICE_ORDER = "PCI_BUS_ID";
    # a forked worker cannot use a driver that its parent has opened
    VLLM_WORKER_MULTIPROC_METHOD = "spawn";
    VLLM_NO_USAGE_STATS = "1";
    HOME = "/var/lib/legacy-cuda-vllm";
    HF_HOME = "/var/lib/legacy-cuda-vllm/huggingface";
    VLLM_CACHE_ROOT = "/var/cache/legacy-cuda-vllm/vllm";
    TRITON_CACHE_DIR = "/var/cache/legacy-cuda-vllm/triton";
    TORCHINDUCTOR_CACHE_DIR = "/var/cache/legacy-cuda-vllm/inductor";
  }
  // lib.optionalAttrs inCluster {
    # which of this machine's addresses the others reach
    VLLM_HOST_IP = cluster.address;
    RAY_ADDRESS = address;
  }
  // cfg.environment;

  # systemd reads quotes as a shell does, and has two signs of its own.
  command = words: builtins.replaceStrings [ "%" "$" ] [ "%%" "$$" ] (lib.escapeShellArgs words);

  service = {
    wantedBy = [ "multi-user.target" ];
    requires = [ "legacy-cuda-ready.service" ];
    after = [
      "network-online.target"
      "legacy-cuda-ready.service"
    ];
    wants = [ "network-online.target" ];
    # Triton and Inductor compile.
    path = [ pkgs.stdenv.cc ];
    inherit environment;
    serviceConfig = hardening // {
      Type = "exec";
      Restart = "on-failure";
      RestartSec = 10;
      User = "legacy-cuda-vllm";
      Group = "legacy-cuda-vllm";
      StateDirectory = "legacy-cuda-vllm";
      CacheDirectory = "legacy-cuda-vllm";
      WorkingDirectory = "/var/lib/legacy-cuda-vllm";
      EnvironmentFile = lib.optional (cfg.environmentFile != null) cfg.environmentFile;
      # The number of nvidia-uvm is another one at each start; the unit waits for it.
      DeviceAllow = hardening.DeviceAllow ++ [ "char-nvidia-uvm rw" ];
      # It downloads models and serves them; NCCL lists network interfaces.
      PrivateNetwork = false;
      IPAddressDeny = [ ];
      RestrictAddressFamilies = [
        "AF_INET"
        "AF_INET6"
        "AF_NETLINK"
        "AF_UNIX"
      ];
      # Triton runs what it has just compiled.
      MemoryDenyWriteExecute = false;
      # threads are bound to processors
      SystemCallFilter = [
        "@system-service"
        "~@privileged"
      ];
      # an error, not the end: PyTorch and Ray try what they may not
      SystemCallErrorNumber = "EPERM";
    };
  };
in
{
  options.services.legacy-cuda.vllm = listen.options 8000 // {
    enable = lib.mkEnableOption "vLLM with code for `hardware.legacy-cuda.gpus`";

    package = mkOption {
      type = types.package;
      default =
        let
          inherit (packaged.packagesFor gpus) vllm;
        in
        if inCluster then vllm.withRay else vllm;
      defaultText = lib.literalMD "vLLM compiled for the capabilities of the cards, with Ray in a cluster";
      description = "The environment to run: its Python and its program `vllm`.";
    };

    model = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "Qwen/Qwen3-8B";
      description = "The model to serve: a name on Hugging Face, or a folder.";
    };

    settings = mkOption {
      type = types.attrsOf types.anything;
      default = { };
      example = {
        max-model-len = 8192;
      };
      description = ''
        Options of `vllm serve` without their dashes, on top of those that suit the cards.
      '';
    };

    environment = mkOption {
      type = types.attrsOf types.str;
      default = { };
      example = {
        NCCL_P2P_DISABLE = "1";
      };
      description = "Environment variables, on top of those that suit the cards.";
    };

    environmentFile = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "/var/lib/secrets/vllm";
      description = ''
        A file with further variables that nobody else is to read, such as `HF_TOKEN`. With a
        `VLLM_API_KEY` in it the gateway and the web UI are not let in: leave that out where vLLM is on
        loopback.
      '';
    };

    serves = mkOption {
      type = types.bool;
      internal = true;
      readOnly = true;
      default = cfg.enable && serves;
      description = "Whether it answers on this machine.";
    };

    cluster = {
      role = mkOption {
        type = types.nullOr (
          types.enum [
            "head"
            "worker"
          ]
        );
        default = null;
        description = ''
          This machine's part in a cluster of Ray: the head serves, and its workers lend it their cards.
          Ray has no password and opens many ports, so only a network in which every machine is
          trusted will do.
        '';
      };

      address = mkOption {
        type = types.str;
        example = "10.0.0.1";
        description = "This machine's address in the network of the cluster.";
      };

      head = mkOption {
        type = types.str;
        example = "10.0.0.1";
        description = "The head's address, for a worker.";
      };

      port = mkOption {
        type = types.port;
        default = 6379;
        description = "The head's port.";
      };
    };
  };

  config = mkIf cfg.enable {
    assertions = [
      {
        assertion = gpus != [ ];
        message = "services.legacy-cuda.vllm: hardware.legacy-cuda.gpus is empty";
      }
      {
        assertion = refusal == null;
        message = stacks.sentence refusal;
      }
      (notInAHome "services.legacy-cuda.vllm.model" cfg.model)
      {
        assertion = !serves || cfg.model != null;
        message = "services.legacy-cuda.vllm: set model";
      }
    ];

    users = mkIf (refusal == null) {
      users.legacy-cuda-vllm = {
        isSystemUser = true;
        group = "legacy-cuda-vllm";
      };
      groups.legacy-cuda-vllm = { };
    };

    systemd.services = mkIf (refusal == null) {
      legacy-cuda-vllm = mkIf serves (
        service
        // {
          description = "vLLM";
          requires = service.requires ++ lib.optional inCluster "legacy-cuda-ray.service";
          after = service.after ++ lib.optional inCluster "legacy-cuda-ray.service";
          # Ray's sockets are in its /tmp.
          unitConfig = lib.optionalAttrs inCluster { JoinsNamespaceOf = "legacy-cuda-ray.service"; };
          serviceConfig = service.serviceConfig // {
            ExecStart = command (
              [
                "${cfg.package}/bin/vllm"
                "serve"
                (toString cfg.model)
              ]
              ++ flags settings
            );
          };
        }
      );

      legacy-cuda-ray = mkIf inCluster (
        service
        // {
          description = "Ray, for vLLM on several machines";
          serviceConfig = service.serviceConfig // {
            ExecStart = command (
              [
                "${cfg.package}/bin/python"
                "-m"
                "ray.scripts.scripts"
                "start"
              ]
              ++ flags (
                {
                  block = true;
                  disable-usage-stats = true;
                  node-ip-address = cluster.address;
                }
                // (
                  if cluster.role == "head" then
                    {
                      head = true;
                      include-dashboard = "false";
                      inherit (cluster) port;
                    }
                  else
                    { inherit address; }
                )
              )
            );
          };
        }
      );
    };

    hardware.legacy-cuda.resumeRepair.units =
      lib.optional serves "legacy-cuda-vllm.service" ++ lib.optional inCluster "legacy-cuda-ray.service";
  };
}
