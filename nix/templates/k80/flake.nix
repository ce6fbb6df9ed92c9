{
  description = "A box with a Tesla K80: llama.cpp on both dies, with the last driver for Kepler";

  inputs = {
    # Where your clone of legacy-cuda is. After a change there: nix flake update legacy-cuda
    legacy-cuda.url = "git+file:///srv/legacy-cuda";
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
