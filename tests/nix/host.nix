# What the tests look at of a machine that was evaluated.
evaluated:
let
  inherit (evaluated) config;
  failed = builtins.filter (one: !one.assertion) config.assertions;
  engine = service: if service.enable then removeAttrs service [ "package" ] else null;
  removeAttrs = builtins.removeAttrs;
in
{
  failed = map (one: one.message) failed;
  inherit (config) warnings;
  kernel = config.boot.kernelPackages.kernel.version;
  blacklisted = config.boot.blacklistedKernelModules;
  nvidia = {
    inherit (config.hardware.nvidia)
      open
      nvidiaPersistenced
      nvidiaSettings
      ;
    inherit (config.hardware.nvidia.package) version;
    powerManagement = config.hardware.nvidia.powerManagement.enable;
    drivers = config.services.xserver.videoDrivers;
    graphics = config.hardware.graphics.enable;
    containers = config.hardware.nvidia-container-toolkit.enable;
  };
  inherit (config.hardware.legacy-cuda) notes;
  etc = builtins.mapAttrs (_: file: file.text) config.environment.etc;
  tmpfiles = config.systemd.tmpfiles.rules;
  firewall = config.networking.firewall.allowedTCPPorts;
  units = builtins.mapAttrs (_: unit: {
    inherit (unit)
      description
      after
      requires
      wantedBy
      environment
      serviceConfig
      ;
  }) config.systemd.services;
  services = builtins.mapAttrs (_: engine) {
    inherit (config.services)
      ollama
      llama-cpp
      litellm
      open-webui
      ;
  };
}
