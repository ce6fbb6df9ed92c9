# A template's machine for a virtual machine without a GPU: nvidia-smi and the driver's device nodes are
# stand-ins, so that the units that wait for them and talk to them run.
{ self, template }:
{
  config,
  lib,
  pkgs,
  ...
}:
let
  # One card, at a temperature that a file says.
  smi = pkgs.writeShellScriptBin "nvidia-smi" ''
    case "$*" in
      *power-limit=*) echo "$*" >> /run/stand-in/calls ;;
      *temperature*) echo "0, ${config.vmHost.pciId}, $(cat /run/stand-in/degrees), 250.00, 125.00, 250.00" ;;
      *) echo "0, ${config.vmHost.pciId}" ;;
    esac
  '';
in
{
  imports = [
    self.nixosModules.default
    (../../nix/templates + "/${template}/configuration.nix")
  ];

  options.vmHost.pciId = lib.mkOption { type = lib.types.str; };

  config = {
    # nothing for it to drive
    services.xserver.videoDrivers = lib.mkForce [ ];
    hardware.nvidia.package = lib.mkForce (
      smi
      // {
        bin = smi;
        version = "0";
      }
    );
    # It asks for a driver that can be seen.
    hardware.nvidia-container-toolkit.enable = lib.mkForce false;
    # an unfree package
    services.open-webui.enable = lib.mkForce false;
    # no unfree package and no compiler: these tests are about the units
    services.legacy-cuda.ollama.package = lib.mkDefault pkgs.ollama;
    services.legacy-cuda.llama-cpp.package = lib.mkDefault pkgs.llama-cpp;
    hardware.legacy-cuda.idlePower.package = lib.mkDefault (
      pkgs.writeShellScriptBin "nvidia-pstated" "exec ${pkgs.coreutils}/bin/sleep infinity"
    );

    fileSystems = lib.mkForce { };
    boot.loader.systemd-boot.enable = lib.mkForce false;
    systemd.tmpfiles.rules = [
      "d /run/stand-in 0755 root root -"
      "f /run/stand-in/degrees 0644 root root - 40"
      "d /run/stand-in/dev 0755 root root -"
    ]
    ++ lib.optional config.services.legacy-cuda.llama-cpp.enable "d /srv/models 0755 root root -";
    systemd.services.legacy-cuda-ready.environment.LEGACY_CUDA_DEV = "/run/stand-in/dev";
    systemd.services.legacy-cuda-power-limits =
      lib.mkIf (config.hardware.legacy-cuda.powerLimits != { })
        {
          serviceConfig.ReadWritePaths = [ "/run/stand-in" ];
        };
    systemd.services.legacy-cuda-thermal-guard =
      lib.mkIf config.hardware.legacy-cuda.thermalGuard.enable
        {
          serviceConfig.ReadWritePaths = [ "/run/stand-in" ];
        };
  };
}
