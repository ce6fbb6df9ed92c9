# Dev shells by GPU name: the stack's Python, legacy-cuda and uv to install the stack's lock with, and
# the libraries that wheels expect from the system. The wheels themselves do not come from Nix.
{ stackFor, devShellNames }:
pkgs:
let
  pythonOf = import ./python.nix;
  # The program alone: its package would bring the libraries of its own Python into PYTHONPATH. It has
  # nixpkgs' uv with it; that of PyPI does not run on NixOS.
  legacy-cuda = pkgs.writeShellApplication {
    name = "legacy-cuda";
    text = ''exec ${pkgs.lib.getExe (pkgs.callPackage ../pkgs/legacy-cuda/package.nix { })} "$@"'';
  };
  shell =
    gpu:
    let
      resolved = stackFor.${gpu};
      python = pythonOf pkgs resolved;
      triton = import ./triton.nix {
        inherit (pkgs) lib stdenv;
        inherit (pkgs.addDriverRunpath) driverLink;
        cudaPackages = pkgs.${"cudaPackages_" + builtins.replaceStrings [ "." ] [ "_" ] resolved.toolkit};
      } resolved;
      # NVIDIA's ptxas is not free software, so a nixpkgs may refuse it.
      allowed =
        if pkgs.config.allowUnfree or false then
          triton
        else
          builtins.removeAttrs triton [ "TRITON_PTXAS_PATH" ];
    in
    pkgs.mkShell {
      name = "legacy-cuda-${gpu}";
      packages = [
        python
        pkgs.uv
        legacy-cuda
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
      }
      // allowed;
    };

  # Looks at no machine: says what there is.
  list = pkgs.mkShell {
    name = "legacy-cuda";
    shellHook = builtins.concatStringsSep "\n" (
      [ "echo 'One dev shell for each card: nix develop .#NAME'" ]
      ++ map (gpu: "echo '  ${gpu}: ${stackFor.${gpu}.stack}'") devShellNames
    );
  };
in
builtins.listToAttrs (
  map (name: {
    inherit name;
    value = shell name;
  }) devShellNames
)
// {
  default = list;
}
