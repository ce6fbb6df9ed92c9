{
  description = "A workstation with a Quadro P4000 and a GeForce GTX 1060: Ollama over both";

  inputs = {
    # Where your clone of legacy-cuda is. After a change there: nix flake update legacy-cuda
    legacy-cuda.url = "git+file:///srv/legacy-cuda";
    nixpkgs.follows = "legacy-cuda/nixpkgs";
  };

  outputs =
    { nixpkgs, legacy-cuda, ... }:
    {
      nixosConfigurations.p4000-gtx1060 = nixpkgs.lib.nixosSystem {
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
