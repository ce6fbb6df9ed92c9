# A NixOS of nothing but the options that the modules set, as nixpkgs declares them.
{
  lib,
  system,
  modules,
  # null: nixpkgs as the modules configure it
  pkgs ? null,
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
    specialArgs = {
      pkgs =
        if pkgs != null then
          pkgs
        else
          import ./. {
            inherit system;
            inherit (evaluated.config.nixpkgs) config;
          };
      # Of what NixOS gives its own modules: the words of a command, quoted for systemd.
      utils.escapeSystemdExecArgs = lib.concatMapStringsSep " " (
        word: builtins.replaceStrings [ "%" "$" ] [ "%%" "$$" ] (builtins.toJSON (toString word))
      );
    };
  };
in
evaluated
