# A workstation with a Quadro P4000 and a GeForce GTX 1060: Ollama over both.
{
  hardware.legacy-cuda = {
    # in the order of their places on the bus
    gpus = [
      "p4000"
      "gtx1060-6gb"
    ];
    # a workstation goes to sleep
    resumeRepair.enable = true;
  };

  services.legacy-cuda = {
    ollama = {
      enable = true;
      modelsDir = "/srv/models";
      models = [ "llama3.1:8b" ];
    };
    gateway.enable = true;
    web-ui.enable = true;
  };

  # Yours instead of these, from nixos-generate-config, and your users and network: this file has none.
  networking.hostName = "p4000-gtx1060";
  boot.loader.systemd-boot.enable = true;
  fileSystems."/" = {
    device = "/dev/disk/by-label/nixos";
    fsType = "ext4";
  };
  system.stateVersion = "26.05";
}
