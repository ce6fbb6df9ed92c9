# A box with a Tesla K80: llama.cpp on both dies, with the last driver for Kepler.
{
  # Driver 470, and no power limits: both are what the card asks for.
  hardware.legacy-cuda.gpus = [ "k80" ];

  services.legacy-cuda.llama-cpp = {
    enable = true;
    model = "/srv/models/model.gguf";
    settings.ctx-size = 4096;
  };

  # Yours instead of these, from nixos-generate-config, and your users, SSH keys and network: this file
  # has none, and after a switch to it alone nobody gets in over the network.
  services.openssh.enable = true;
  # users.users.you = {
  #   isNormalUser = true;
  #   extraGroups = [ "wheel" ];
  #   openssh.authorizedKeys.keys = [ "ssh-ed25519 AAAA... you@desk" ];
  # };
  networking.hostName = "k80";
  boot.loader.systemd-boot.enable = true;
  fileSystems."/" = {
    device = "/dev/disk/by-label/nixos";
    fsType = "ext4";
  };
  system.stateVersion = "26.05";
}
