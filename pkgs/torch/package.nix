# PyTorch as nixpkgs builds it, for the capabilities of this nixpkgs and for nothing else, with our
# patches for its version (a folder of that name).
{
  lib,
  cudaPackages,
  python3Packages,
  triton,
}:

let
  torch = python3Packages.torch.override {
    cudaSupport = true;
    inherit cudaPackages;
    gpuTargets = cudaPackages.flags.cudaCapabilities;
    _tritonEffective = triton;
  };
  folder = ./. + "/${torch.version}";
  known = builtins.attrNames (lib.filterAttrs (_: kind: kind == "directory") (builtins.readDir ./.));
in
if !builtins.pathExists folder then
  throw "nixpkgs has PyTorch ${torch.version}; there are patches for ${lib.concatStringsSep ", " known}"
else
  torch.overridePythonAttrs (previous: {
    patches =
      (previous.patches or [ ])
      ++ map (name: folder + "/${name}") (builtins.attrNames (builtins.readDir folder));
  })
