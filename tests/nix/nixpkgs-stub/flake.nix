{
  description = "What flake.nix takes from nixpkgs, with nothing behind it";

  outputs =
    { ... }:
    let
      system = "x86_64-linux";
      package = name: { outPath = "/stub/${name}"; };
    in
    {
      legacyPackages.${system} = {
        # A derivation that nobody builds, with the arguments kept for the tests.
        mkShell =
          arguments:
          derivation {
            inherit (arguments) name;
            inherit system;
            builder = "/bin/sh";
          }
          // {
            inherit arguments;
          };
        python311 = package "python3.11";
        python312 = package "python3.12";
        python313 = package "python3.13";
        stdenv.cc.cc.lib = package "gcc-lib";
        uv = package "uv";
        zlib = package "zlib";
      };
    };
}
