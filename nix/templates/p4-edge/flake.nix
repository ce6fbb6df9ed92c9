{
  description = "An edge node with a Tesla P4: llama.cpp for others on the network, containers";

  inputs = {
    # Where your copy of legacy-cuda is.
    legacy-cuda.url = "path:/etc/legacy-cuda";
    nixpkgs.follows = "legacy-cuda/nixpkgs";
  };

  outputs =
    { nixpkgs, legacy-cuda, ... }:
    {
      nixosConfigurations.p4-edge = nixpkgs.lib.nixosSystem {
        system = "x86_64-linux";
        modules = [
          legacy-cuda.nixosModules.default
          ./configuration.nix
          # NVIDIA's driver is not free software.
          { nixpkgs.config.allowUnfree = true; }
        ];
      };
    };
}
