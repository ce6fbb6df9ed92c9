{
  description = "Proven AI software stacks for old NVIDIA GPUs, Kepler to Volta";

  # Everything under `lib` evaluates without fetching any of them.
  inputs = {
    nixpkgs.url = "github:NixOS/nixpkgs/nixos-26.05";
    # PyTorch 2.9 and the Triton that there are patches for, and what cuda-legacy is made for.
    nixpkgs-25_11.url = "github:NixOS/nixpkgs/nixos-25.11";
    # CUDA 11 with its compilers, and cuDNN of those years. Its overlay is all that is needed; as a
    # flake it would bring inputs of its own.
    cuda-legacy = {
      url = "github:nixos-cuda/cuda-legacy";
      flake = false;
    };
  };

  outputs =
    {
      self,
      nixpkgs,
      nixpkgs-25_11,
      cuda-legacy,
    }:
    let
      # The catalog's locks hold wheels for this system only.
      system = "x86_64-linux";
      pkgs = nixpkgs.legacyPackages.${system};

      catalog = import ./nix/catalog.nix;
      stacks = import ./nix/stacks.nix catalog;
      mkDevShells = import ./nix/shells.nix { inherit (stacks) stackFor devShellNames; };
      packaged = import ./nix/packages.nix {
        inherit
          catalog
          stacks
          nixpkgs
          nixpkgs-25_11
          cuda-legacy
          system
          ;
      };
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
        inherit (packaged) packagesFor;
      };

      # with NVIDIA's ptxas, which is not free software
      devShells.${system} = mkDevShells (
        import nixpkgs {
          inherit system;
          config.allowUnfree = true;
        }
      );
      packages.${system} = packaged.packages;
      overlays.default = final: _: {
        legacy-cuda = final.callPackage ./pkgs/legacy-cuda/package.nix { };
      };
      nixosModules = import ./nix/modules {
        inherit catalog stacks packaged;
      };
      checks.${system} = import ./nix/checks.nix { inherit self pkgs; };
      formatter.${system} = pkgs.nixfmt-tree;
      templates = import ./nix/templates;
    };
}
