# The part of nixpkgs' _cuda that the flake uses, and the sets of CUDA packages.
rec {
  bootstrapData.cudaPackagesPath = ./cuda-packages.nix;
  make =
    pkgs: cuda: cudnn:
    pkgs.callPackage bootstrapData.cudaPackagesPath {
      manifests = {
        cuda.release_label = cuda;
        cudnn.release_label = cudnn;
      };
    };
}
