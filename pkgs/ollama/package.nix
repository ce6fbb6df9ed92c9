# Ollama as nixpkgs builds it, for the capabilities of this nixpkgs and for nothing else.
{
  cudaPackages,
  ollama,
}:

ollama.override {
  acceleration = "cuda";
  inherit cudaPackages;
  cudaArches = cudaPackages.flags.realArches;
}
