# Dev shells by GPU name: the stack's Python, uv to install the stack's lock with, and the
# libraries that wheels expect from the system. The wheels themselves do not come from Nix.
{ stackFor, devShellNames }:
pkgs:
let
  shell =
    gpu:
    let
      resolved = stackFor.${gpu};
      # Of the stack's Pythons, best first, the first that this nixpkgs has.
      attribute = version: "python" + builtins.replaceStrings [ "." ] [ "" ] version;
      known = builtins.filter (version: pkgs ? ${attribute version}) resolved.pythons;
      python =
        if known == [ ] then
          throw "nixpkgs has no Python of the stack ${resolved.stack}: ${toString resolved.pythons}"
        else
          pkgs.${attribute (builtins.head known)};
    in
    pkgs.mkShell {
      name = "legacy-cuda-${gpu}";
      packages = [
        python
        pkgs.uv
      ];
      env = {
        LEGACY_CUDA_GPU = gpu;
        LEGACY_CUDA_STACK = resolved.stack;
        UV_PYTHON = "${python}/bin/python3";
        UV_PYTHON_DOWNLOADS = "never";
        # The first is where NixOS puts the driver's own libraries (libcuda.so.1).
        LD_LIBRARY_PATH = builtins.concatStringsSep ":" [
          "/run/opengl-driver/lib"
          "${pkgs.stdenv.cc.cc.lib}/lib"
          "${pkgs.zlib}/lib"
        ];
      };
    };
in
builtins.listToAttrs (
  map (name: {
    inherit name;
    value = shell name;
  }) devShellNames
)
