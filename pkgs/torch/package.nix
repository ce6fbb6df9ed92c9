# PyTorch as nixpkgs builds it, for the capabilities of this nixpkgs and for nothing else.
{
  cudaPackages,
  python3Packages,
  triton,
}:

python3Packages.torch.override {
  cudaSupport = true;
  inherit cudaPackages;
  gpuTargets = cudaPackages.flags.cudaCapabilities;
  _tritonEffective = triton;
}
