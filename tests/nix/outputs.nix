# The flake's outputs with stubs in the place of its inputs, evaluated where they lie.
inputs:
let
  root = ../..;
  input =
    name:
    let
      folder = inputs + "/${name}";
    in
    (import (folder + "/flake.nix")).outputs { self = { }; } // { outPath = folder; };
  flake =
    (import (root + "/flake.nix")).outputs {
      self = flake;
      nixpkgs = input "nixpkgs";
      nixpkgs-25_11 = input "nixpkgs-25_11";
      cuda-legacy = inputs + "/cuda-legacy";
    }
    // {
      # for the tests
      nixpkgs = input "nixpkgs";
    };
in
flake
