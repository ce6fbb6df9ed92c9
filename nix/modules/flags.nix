# Settings as the flags of a program: `true` is a flag by itself, a list its flag once for each item,
# `false` and null are none.
lib:
let
  flag =
    name: value:
    if builtins.isList value then
      lib.concatMap (flag name) value
    else if value == null || value == false then
      [ ]
    else
      [ "--${name}" ] ++ lib.optional (value != true) (toString value);
in
settings: lib.concatLists (lib.mapAttrsToList flag settings)
