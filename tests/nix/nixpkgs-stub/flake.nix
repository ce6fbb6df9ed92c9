{
  description = "What the flake takes from nixpkgs, with nothing behind it: the arguments are kept";

  outputs =
    _:
    let
      system = "x86_64-linux";
      lib = import ./lib.nix;
    in
    {
      legacyPackages.${system} = import ./. { inherit system; };
      lib = lib // {
        nixosSystem = arguments: import ./nixos.nix ({ inherit lib system; } // arguments);
      };
    };
}
