{
  description = "Proven AI software stacks for old NVIDIA GPUs, Kepler to Volta";

  # Only devShells need it; everything under `lib` evaluates without fetching anything.
  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-26.05";

  outputs =
    { nixpkgs, ... }:
    let
      catalog = import ./nix/catalog.nix;
      stacks = import ./nix/stacks.nix catalog;
      mkDevShells = import ./nix/shells.nix { inherit (stacks) stackFor devShellNames; };
      # The catalog's locks hold wheels for this system only.
      system = "x86_64-linux";
    in
    {
      lib = {
        inherit (catalog)
          gpus
          stacks
          capabilities
          toolkits
          engines
          locks
          findGpu
          ;
        inherit (stacks)
          resolve
          resolveFor
          stackFor
          devShellNames
          ;
        inherit mkDevShells;
      };

      devShells.${system} = mkDevShells nixpkgs.legacyPackages.${system};
    };
}
