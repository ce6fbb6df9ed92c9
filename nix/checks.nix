# Machines of the templates in virtual machines, for builders that can run them.
{ self, pkgs }:
builtins.listToAttrs (
  map (file: {
    name = "vm-${builtins.head (builtins.match "(.*)[.]nix" file)}";
    value = pkgs.testers.runNixOSTest (import (../tests/nix/vm + "/${file}") { inherit self; });
  }) (builtins.attrNames (builtins.readDir ../tests/nix/vm))
)
