# A NixOS of nothing but the options that the modules set, as nixpkgs declares them.
{
  lib,
  system,
  modules,
}:
let
  options = import ./nixos-options.nix;
  pkgs = import ./. { inherit system; };
  evaluated = lib.evalModules {
    modules = [ options ] ++ modules;
    specialArgs = { inherit pkgs; };
  };
  failed = map (one: one.message) (lib.filter (one: !one.assertion) evaluated.config.assertions);
in
evaluated // { inherit failed pkgs; }
