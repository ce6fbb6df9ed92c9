# An edge node with a Tesla P4: llama.cpp for others on the network, containers.
{
  hardware.legacy-cuda = {
    gpus = [ "p4" ];
    containers = true;
    thermalGuard.enable = true;
  };

  virtualisation.podman.enable = true;

  services.legacy-cuda.llama-cpp = {
    enable = true;
    modelsDir = "/srv/models";
    # Everybody who reaches this address can use it: there is no password.
    host = "0.0.0.0";
    settings.ctx-size = 4096;
  };
  networking.firewall.allowedTCPPorts = [ 8080 ];

  # Yours instead of these, from nixos-generate-config, and your users, SSH keys and network: this file
  # has none, and after a switch to it alone nobody gets in over the network.
  services.openssh.enable = true;
  # users.users.you = {
  #   isNormalUser = true;
  #   extraGroups = [ "wheel" ];
  #   openssh.authorizedKeys.keys = [ "ssh-ed25519 AAAA... you@desk" ];
  # };
  networking.hostName = "p4-edge";
  boot.loader.systemd-boot.enable = true;
  fileSystems."/" = {
    device = "/dev/disk/by-label/nixos";
    fsType = "ext4";
  };
  system.stateVersion = "26.05";
}
