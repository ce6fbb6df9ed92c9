# A NixOS of nothing but the options that the modules set, as nixpkgs declares them.
{
  lib,
  system,
  modules,
  pkgs ? import ./. { inherit system; },
}:
let
  evaluated = lib.evalModules {
    modules = [ (import ./nixos-options.nix { upstream = import ./upstream.nix; }) ] ++ modules;
    specialArgs = { inherit pkgs; };
  };
in
evaluated // { inherit pkgs; }
