# A host with a Tesla P40, without a display: Ollama, Open WebUI and monitoring.
{
  hardware.legacy-cuda = {
    gpus = [ "p40" ];
    # of 250: cooler, and hardly slower where memory is the limit
    powerLimits.p40 = 180;
    thermalGuard.enable = true;
    # idlePower.enable = true; # built by nobody yet: try it when the rest runs
  };

  services.legacy-cuda = {
    ollama = {
      enable = true;
      models = [ "llama3.2:3b" ];
    };
    web-ui.enable = true;
    # Grafana: http://127.0.0.1:3001, first with the account admin and the password admin
    monitoring = {
      enable = true;
      grafana.enable = true;
    };
  };

  # Yours instead of these, from nixos-generate-config, and your users, SSH keys and network: this file
  # has none, and after a switch to it alone nobody gets in over the network.
  services.openssh.enable = true;
  # users.users.you = {
  #   isNormalUser = true;
  #   extraGroups = [ "wheel" ];
  #   openssh.authorizedKeys.keys = [ "ssh-ed25519 AAAA... you@desk" ];
  # };
  networking.hostName = "p40";
  boot.loader.systemd-boot.enable = true;
  fileSystems."/" = {
    device = "/dev/disk/by-label/nixos";
    fsType = "ext4";
  };
  system.stateVersion = "26.05";
}
