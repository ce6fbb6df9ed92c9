# llama.cpp as nixpkgs builds it, for the capabilities of this nixpkgs and for nothing else.
{
  cudaPackages,
  llama-cpp,
}:

llama-cpp.override {
  cudaSupport = true;
  inherit cudaPackages;
}
