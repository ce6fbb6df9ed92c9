# The driver for the cards of this machine, and what such cards want from it.
{ catalog, stacks, ... }:
{
  config,
  lib,
  options,
  pkgs,
  ...
}:
let
  inherit (lib)
    mkDefault
    mkIf
    mkOption
    types
    ;

  cfg = config.hardware.legacy-cuda;
  enabled = cfg.gpus != [ ];
  cards = map (name: catalog.gpus.${name}) cfg.gpus;
  each = lib.unique cards;

  # Reported of a K80 (doctor rule D12): setting power limits halted the host. Until more is known,
  # nothing is set on any Kepler card unless somebody asks for it.
  isKepler = card: catalog.capabilities.${card.capability}.architecture == "Kepler";

  # Branches that NixOS has, and which of them, with which kernel module, serve all of the cards.
  branches = lib.filter (branch: branch ? nixos_attribute) catalog.branchList;
  serving = lib.filter (found: found.branch ? nixos_attribute) (stacks.driversServing cfg.gpus);
  newest = if serving == [ ] then null else (lib.last serving).branch.branch;
  branch = lib.findFirst (row: row.branch == cfg.branch) null branches;
  attribute = branch.nixos_attribute;
  driver = lib.findFirst (found: found.branch.branch == cfg.branch) null serving;

  # Does the driver of that branch compile on this kernel?
  fits =
    kernelPackages:
    !(branch ? kernel_below)
    || lib.versionOlder kernelPackages.kernel.version branch.kernel_below
    || (
      branch ? kernel_fixed_by
      && lib.versionAtLeast kernelPackages.nvidiaPackages.${attribute}.version branch.kernel_fixed_by
    );
  # Kernels that nixpkgs has, newest last; removed ones are there as `throw`s.
  numbered = lib.filter (
    name:
    builtins.match "linux_[0-9]+_[0-9]+" name != null
    && (builtins.tryEval pkgs.linuxKernel.packages.${name}.kernel.version).success
  ) (builtins.attrNames pkgs.linuxKernel.packages);
  fitting = lib.sort (a: b: lib.versionOlder a.kernel.version b.kernel.version) (
    lib.filter fits (map (name: pkgs.linuxKernel.packages.${name}) numbered)
  );

  refusal = (stacks.resolve cfg.gpus).refusal or null;
  # Whether there is anything for these cards at all is for the driver to say; what an engine
  # refuses is said where the engine is switched on.
  aboutDriver = [
    "not-legacy"
    "driver-branch"
    "kernel-module-flavour"
  ];

  notes = lib.concatMap (
    card:
    lib.optional (card.dies > 1)
      "${card.product}: ${toString card.dies} dies, each a GPU of its own with ${toString card.memory_mib} MiB; no model larger than one die without splitting it"
    ++ lib.optional (
      (card.cooling or "active") == "passive"
    ) "${card.product}: passive, needs a duct and a fan outside a server chassis"
    ++
      lib.optional (card.ecc or false && lib.hasPrefix "GDDR" card.memory_type)
        "${card.product}: with ECC on a part of its ${card.memory_type} is not to be had; nvidia-smi --ecc-config=0 and a restart of the machine give it back"
  ) each;

  hardening = import ./hardening.nix;
  nvidia-smi = "${config.hardware.nvidia.package.bin}/bin/nvidia-smi";

  # What our scripts call the cards: "10de:1b38=180".
  argument = value: card: map (id: "${id}=${toString value}") card.pci_ids;
  limits = lib.concatMap (card: argument cfg.powerLimits.${card.name} card) (
    lib.filter (card: cfg.powerLimits ? ${card.name}) each
  );
  isGuarded = name: cfg.thermalGuard.enable && lib.elem name cfg.thermalGuard.cards;
  isLimited = name: cfg.powerLimits ? ${name} || isGuarded name;
  # With a limit of ours: "10de:1b38=85,180".
  guarded = lib.concatMap (
    card:
    argument (lib.concatMapStringsSep "," toString (
      [ cfg.thermalGuard.temperature ]
      ++ lib.optional (cfg.powerLimits ? ${card.name}) cfg.powerLimits.${card.name}
    )) card
  ) (lib.filter (card: isGuarded card.name) each);

  idling = lib.concatMap (card: argument card.idle_pstate card) (
    lib.filter (card: cfg.idlePower.enable && lib.elem card.name cfg.idlePower.cards) each
  );

  script =
    name: runtimeInputs:
    lib.getExe (
      pkgs.writeShellApplication {
        name = "legacy-cuda-${name}";
        inherit runtimeInputs;
        text = builtins.readFile (./. + "/${name}.sh");
      }
    );
  sleeps = [
    "suspend.target"
    "hibernate.target"
    "hybrid-sleep.target"
    "suspend-then-hibernate.target"
  ];
in
{
  options.hardware.legacy-cuda = {
    gpus = mkOption {
      type = types.listOf (types.enum (builtins.attrNames catalog.gpus));
      default = [ ];
      example = [
        "p40"
        "p40"
      ];
      description = ''
        The NVIDIA cards of this machine, by their names in the catalog
        (`legacy-cuda gpus`), each as often as it is there. An empty list switches
        the whole module off.
      '';
    };

    branch = mkOption {
      type = types.enum (map (row: row.branch) branches);
      default = if !enabled || newest == null then (lib.last branches).branch else newest;
      defaultText = lib.literalMD "the newest branch that serves all of the cards";
      description = "The branch of NVIDIA's driver.";
    };

    persistence = mkOption {
      type = types.bool;
      default = !lib.any isKepler cards;
      defaultText = lib.literalMD "`true` unless there is a Kepler card";
      description = "Keep the driver's state while nothing uses the cards (nvidia-persistenced).";
    };

    containers = mkOption {
      type = types.bool;
      default = false;
      description = "Let containers use the cards (nvidia-container-toolkit, CDI).";
    };

    resumeRepair = {
      enable = mkOption {
        type = types.bool;
        default = true;
        description = ''
          Load nvidia_uvm anew when the machine wakes up. Without it CUDA may fail
          with error 999 after a suspend, and Ollama goes on with the CPU.
        '';
      };

      units = mkOption {
        type = types.listOf types.str;
        default = [ ];
        example = [ "jupyter.service" ];
        description = ''
          Units that use the cards. They are stopped before and started again after;
          services of `services.legacy-cuda` are in the list by themselves.
        '';
      };
    };

    powerLimits = mkOption {
      type = types.attrsOf types.ints.positive;
      default = { };
      example = {
        p40 = 180;
      };
      description = ''
        Watts by card name. Without an entry a card keeps its own limit.
        On a Tesla K80 setting one has been reported to halt the machine.
      '';
    };

    thermalGuard = {
      enable = mkOption {
        type = types.bool;
        default = false;
        description = ''
          Set a card to its lowest power limit while it is too hot, and back when it
          has cooled down by ten degrees.
        '';
      };

      cards = mkOption {
        type = types.listOf (types.enum cfg.gpus);
        default = map (card: card.name) (
          lib.filter (card: (card.cooling or "active") != "active" && !isKepler card) each
        );
        defaultText = lib.literalMD "cards without a fan of their own, Kepler cards excepted";
        description = "Names of the cards to guard.";
      };

      temperature = mkOption {
        type = types.ints.positive;
        default = 85;
        description = "Degrees Celsius from which a card is too hot.";
      };
    };

    idlePower = {
      enable = mkOption {
        type = types.bool;
        default = false;
        description = ''
          Put a card into a state that saves power while it computes nothing, although a model lies in
          its memory (nvidia-pstated). A P40 takes about 50 W then by itself.
        '';
      };

      package = mkOption {
        type = types.package;
        default = pkgs.callPackage ../../pkgs/nvidia-pstated/package.nix { };
        defaultText = lib.literalMD "nvidia-pstated";
        description = "The nvidia-pstated to run.";
      };

      cards = mkOption {
        type = types.listOf (types.enum cfg.gpus);
        default = map (card: card.name) (lib.filter (card: card ? idle_pstate) each);
        defaultText = lib.literalMD "cards that have such a state, as far as the catalog knows";
        description = "Names of the cards. One with a single state is not served by it.";
      };
    };

    notes = mkOption {
      type = types.listOf types.str;
      readOnly = true;
      default = notes;
      defaultText = lib.literalMD "from the catalog";
      description = "What to know about these cards; written to /etc/legacy-cuda-notes.";
    };
  };

  config = mkIf enabled {
    assertions = [
      {
        assertion = refusal == null || !lib.elem refusal.rule aboutDriver;
        message = stacks.sentence refusal;
      }
      {
        assertion = newest != null || (refusal != null && lib.elem refusal.rule aboutDriver);
        message = "no driver that NixOS has serves ${lib.concatStringsSep ", " (lib.unique cfg.gpus)} in one machine";
      }
      {
        assertion = newest == null || driver != null;
        message = "driver branch ${cfg.branch} does not serve ${lib.concatStringsSep ", " cfg.gpus}; the newest that does is ${newest}";
      }
      {
        assertion = driver == null || fits config.boot.kernelPackages;
        message = "driver branch ${cfg.branch} does not compile on Linux ${config.boot.kernelPackages.kernel.version}: ${branch.kernel_note or ""}";
      }
    ]
    ++ map (name: {
      assertion = !cfg.idlePower.enable || catalog.gpus.${name} ? idle_pstate;
      message = "hardware.legacy-cuda.idlePower.cards: no state of a ${catalog.gpus.${name}.product} that saves power is known";
    }) cfg.idlePower.cards
    ++ lib.mapAttrsToList (name: watts: {
      assertion = lib.elem name cfg.gpus;
      message = "hardware.legacy-cuda.powerLimits.${name}: there is no such card in hardware.legacy-cuda.gpus";
    }) cfg.powerLimits
    ++ map (card: {
      assertion = !(cfg.powerLimits ? ${card.name}) || cfg.powerLimits.${card.name} <= card.tdp_w;
      message = "hardware.legacy-cuda.powerLimits.${card.name}: a ${card.product} is made for ${toString card.tdp_w} W";
    }) each;

    warnings = map (
      card:
      "hardware.legacy-cuda: ${card.name} is to get a power limit, and setting one has been reported to halt a machine with a K80"
    ) (lib.filter (card: isKepler card && isLimited card.name) each);

    boot = {
      # The kernel is left alone where the driver compiles on it.
      kernelPackages = mkIf (driver != null && !fits pkgs.linuxPackages && fitting != [ ]) (
        mkDefault (lib.last fitting)
      );
      blacklistedKernelModules = [
        "nouveau"
        "nova_core"
        "nova_drm"
      ];
    };

    # Loads the modules on a machine without a display, too.
    services.xserver.videoDrivers = [ "nvidia" ];

    hardware = {
      graphics.enable = true;
      nvidia = {
        open = driver != null && driver.flavour == "open";
        package = mkDefault config.boot.kernelPackages.nvidiaPackages.${attribute};
        nvidiaPersistenced = cfg.persistence;
        nvidiaSettings = mkDefault false;
        # Keeps what is in the cards' memory through a suspend.
        powerManagement.enable = mkDefault cfg.resumeRepair.enable;
      }
      # Where it is kept meanwhile: the driver's own choice, /tmp, may be memory itself.
      // lib.optionalAttrs (options.hardware.nvidia ? moduleParams) {
        moduleParams.nvidia.NVreg_TemporaryFilePath = mkDefault "/var/tmp";
      };
      nvidia-container-toolkit.enable = mkIf cfg.containers true;
    };

    environment.etc.legacy-cuda-notes = mkIf (notes != [ ]) {
      text = lib.concatMapStrings (note: note + "\n") notes;
    };

    systemd.services = {
      # An engine that starts before the driver is there stays on the CPU and does not say so.
      legacy-cuda-ready = {
        description = "Wait for the NVIDIA driver";
        wantedBy = [ "multi-user.target" ];
        serviceConfig = hardening // {
          Type = "oneshot";
          RemainAfterExit = true;
          DynamicUser = true;
          ExecStart = "${script "ready" [ pkgs.coreutils ]} 120";
        };
      };

      # NixOS's own lists the devices once, and only hopes that the driver is there by then.
      nvidia-container-toolkit-cdi-generator = mkIf config.hardware.nvidia-container-toolkit.enable {
        wants = [ "legacy-cuda-ready.service" ];
        after = [ "legacy-cuda-ready.service" ];
      };

      legacy-cuda-power-limits = mkIf (limits != [ ]) {
        description = "Power limits of NVIDIA cards";
        wantedBy = [ "multi-user.target" ];
        requires = [ "legacy-cuda-ready.service" ];
        after = [
          "legacy-cuda-ready.service"
          "nvidia-persistenced.service"
        ];
        serviceConfig = hardening // {
          Type = "oneshot";
          RemainAfterExit = true;
          # The driver takes a limit from an administrator only.
          CapabilityBoundingSet = [ "CAP_SYS_ADMIN" ];
          ExecStart = lib.concatStringsSep " " (
            [
              (script "power-limits" [ ])
              nvidia-smi
            ]
            ++ limits
          );
        };
      };

      legacy-cuda-thermal-guard = mkIf (guarded != [ ]) {
        description = "Power limits of NVIDIA cards that are too hot";
        wantedBy = [ "multi-user.target" ];
        requires = [ "legacy-cuda-ready.service" ];
        after = [
          "legacy-cuda-ready.service"
          "legacy-cuda-power-limits.service"
        ];
        serviceConfig = hardening // {
          CapabilityBoundingSet = [ "CAP_SYS_ADMIN" ];
          ExecStart = lib.concatStringsSep " " (
            [
              (script "thermal-guard" [ pkgs.coreutils ])
              nvidia-smi
            ]
            ++ guarded
          );
          Restart = "always";
          RestartSec = 10;
        };
      };

      legacy-cuda-idle-power = mkIf (idling != [ ]) {
        description = "Performance states of NVIDIA cards that are idle";
        wantedBy = [ "multi-user.target" ];
        requires = [ "legacy-cuda-ready.service" ];
        after = [ "legacy-cuda-ready.service" ];
        # nvidia-pstated opens the driver's libraries by their names.
        environment.LD_LIBRARY_PATH = "${pkgs.addDriverRunpath.driverLink}/lib";
        serviceConfig = hardening // {
          DynamicUser = true;
          ExecStart = lib.concatStringsSep " " (
            [
              (script "idle-power" [ ])
              nvidia-smi
              (lib.getExe cfg.idlePower.package)
            ]
            ++ idling
          );
          Restart = "always";
          RestartSec = 10;
        };
      };

      legacy-cuda-resume = mkIf cfg.resumeRepair.enable {
        description = "Load nvidia_uvm anew after a suspend";
        wantedBy = sleeps;
        after = sleeps ++ [ "nvidia-resume.service" ];
        serviceConfig = hardening // {
          Type = "oneshot";
          # a unit that does not stop must not keep the others stopped
          TimeoutStartSec = 120;
          CapabilityBoundingSet = [ "CAP_SYS_MODULE" ];
          DeviceAllow = [ ];
          ProtectKernelModules = false;
          SystemCallFilter = [
            "@system-service"
            "@module"
            "~@resources"
          ];
          ExecStart = lib.concatStringsSep " " (
            [
              (script "resume" [
                config.systemd.package
                pkgs.kmod
              ])
            ]
            ++ cfg.resumeRepair.units
          );
        };
      };
    };
  };
}
