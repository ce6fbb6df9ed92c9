# What the tests look at of a machine that was evaluated.
evaluated:
let
  inherit (evaluated) config options;
  failed = builtins.filter (one: !one.assertion) config.assertions;
  # Options by name: some that are there only say that they were removed.
  pick =
    names: service:
    if service.enable then
      builtins.listToAttrs (
        map (name: {
          inherit name;
          value = service.${name};
        }) names
      )
    else
      null;
in
{
  failed = map (one: one.message) failed;
  inherit (config) warnings;
  kernel = config.boot.kernelPackages.kernel.version;
  blacklisted = config.boot.blacklistedKernelModules;
  # Without the driver some of its options have no value.
  nvidia =
    if config.services.xserver.videoDrivers == [ ] then
      null
    else
      {
        inherit (config.hardware.nvidia)
          open
          nvidiaPersistenced
          nvidiaSettings
          ;
        inherit (config.hardware.nvidia.package) version;
        powerManagement = config.hardware.nvidia.powerManagement.enable;
        drivers = config.services.xserver.videoDrivers;
        graphics = config.hardware.graphics.enable;
        temporary = config.hardware.nvidia.moduleParams.nvidia.NVreg_TemporaryFilePath or null;
      };
  containers = config.hardware.nvidia-container-toolkit.enable;
  inherit (config.hardware.legacy-cuda) notes;
  notes-file = config.environment.etc.legacy-cuda-notes.text or null;
  etc = builtins.attrNames config.environment.etc;
  tmpfiles = config.systemd.tmpfiles.rules;
  inherit (config) users;
  ssh = config.services.openssh.enable;
  firewall = config.networking.firewall.allowedTCPPorts;
  units = builtins.mapAttrs (_: unit: {
    inherit (unit)
      description
      after
      requires
      wants
      wantedBy
      environment
      preStart
      script
      serviceConfig
      unitConfig
      ;
  }) config.systemd.services;
  services = {
    ollama = pick [
      "host"
      "port"
      "loadModels"
      "environmentVariables"
      (if options.services.ollama ? modelsDir then "modelsDir" else "models")
      "user"
      "group"
    ] config.services.ollama;
    llama-cpp = pick (
      if options.services.llama-cpp ? settings then
        [ "settings" ]
      else
        [
          "host"
          "port"
          "model"
          "modelsDir"
          "extraFlags"
        ]
    ) config.services.llama-cpp;
    litellm = pick [
      "host"
      "port"
      "settings"
    ] config.services.litellm;
    open-webui = pick [
      "host"
      "port"
      "environment"
    ] config.services.open-webui;
    prometheus = pick [
      "listenAddress"
      "port"
      "scrapeConfigs"
      "ruleFiles"
    ] config.services.prometheus;
    grafana =
      let
        inherit (config.services) grafana;
      in
      if grafana.enable then
        {
          inherit (grafana) settings;
          provision = {
            inherit (grafana.provision) enable datasources dashboards;
          };
        }
      else
        null;
    nix-serve = pick [
      "bindAddress"
      "port"
      "secretKeyFile"
    ] config.services.nix-serve;
  };
  nix = {
    inherit (config.nix) buildMachines distributedBuilds;
    settings = builtins.intersectAttrs {
      substituters = null;
      trusted-public-keys = null;
      builders-use-substitutes = null;
    } config.nix.settings;
  };
  kept = map (package: package.name) config.system.extraDependencies;
}
