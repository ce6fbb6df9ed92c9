{
  description = "A box with a Tesla K80: llama.cpp on both dies, with the last driver for Kepler";

  inputs = {
    # Where your copy of legacy-cuda is.
    legacy-cuda.url = "path:/etc/legacy-cuda";
    nixpkgs.follows = "legacy-cuda/nixpkgs";
  };

  outputs =
    { nixpkgs, legacy-cuda, ... }:
    {
      nixosConfigurations.k80 = nixpkgs.lib.nixosSystem {
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
