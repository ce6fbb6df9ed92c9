# A NixOS of nothing but the options that the modules set, as nixpkgs declares them.
{
  lib,
  system,
  modules,
  pkgs ? import ./. { inherit system; },
  # the options of 26.05, or those of later
  later ? false,
}:
let
  evaluated = lib.evalModules {
    modules = [
      (import ./nixos-options.nix {
        upstream = import ./upstream.nix;
        inherit later;
      })
    ]
    ++ modules;
    specialArgs = { inherit pkgs; };
  };
in
evaluated // { inherit pkgs; }
