# Of the stack's Pythons, best first, the first that this nixpkgs has.
pkgs: stack:
let
  attribute = version: "python" + builtins.replaceStrings [ "." ] [ "" ] version;
  known = builtins.filter (version: pkgs ? ${attribute version}) stack.pythons;
in
if known == [ ] then
  throw "nixpkgs has no Python of the stack ${stack.stack}: ${toString stack.pythons}"
else
  pkgs.${attribute (builtins.head known)}
