# What Triton wants to be told on NixOS, as environment variables: it would ask /sbin/ldconfig for
# the driver's library, start the ptxas of its wheel, which is for other distributions, and look for
# a compiler on PATH. Nothing for a stack whose Triton has no code for its cards.
{
  lib,
  stdenv,
  cudaPackages,
  driverLink,
}:
stack:
lib.optionalAttrs (lib.elem "triton" stack.patched) {
  TRITON_LIBCUDA_PATH = "${driverLink}/lib";
  TRITON_PTXAS_PATH = lib.getExe' cudaPackages.cuda_nvcc "ptxas";
  CC = "${stdenv.cc}/bin/cc";
}
