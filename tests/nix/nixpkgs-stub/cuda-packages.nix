# A set of CUDA packages. Like nixpkgs' own it refuses capabilities that its nvcc has no code for.
{
  lib,
  config,
  stdenv,
  manifests,
}:
let
  parts = builtins.splitVersion manifests.cuda.release_label;
  version = "${builtins.elemAt parts 0}.${builtins.elemAt parts 1}";
  newest = capability: if lib.versionOlder capability "5.0" then "11.8" else "12.9";
  tooOld = builtins.filter (capability: lib.versionOlder (newest capability) version) (
    config.cudaCapabilities or [ ]
  );
  # All in one output. It is not free software, so nixpkgs has to be asked for it in so many words.
  member =
    name:
    let
      path =
        if config.allowUnfree or false then
          "/${name}-${version}"
        else
          throw "Package ${name} has an unfree license";
    in
    {
      type = "derivation";
      inherit name;
      outPath = path;
      outputs = [ "out" ];
      out = path;
    };
  digits = capability: builtins.replaceStrings [ "." ] [ "" ] capability;
in
{
  inherit config manifests;
  cudaMajorMinorVersion = version;
  cuda_nvcc = member "cuda_nvcc";
  cuda_cccl = member "cuda_cccl";
  cuda_cudart = member "cuda_cudart" // {
    stubs = member "cuda_cudart-stubs";
  };
  cuda_nvml_dev = member "cuda_nvml_dev";
  cuda_nvrtc = member "cuda_nvrtc";
  cuda_nvtx = member "cuda_nvtx";
  libcublas = member "libcublas";
  libcurand = member "libcurand";
  libcusolver = member "libcusolver";
  libcusparse = member "libcusparse";
  backendStdenv = stdenv // {
    outPath = "/backend-stdenv";
    cc = "/gcc-for-cuda-${version}";
  };
  flags =
    if tooOld != [ ] then
      throw "Requested CUDA capabilities which are too old for CUDA ${version}: ${toString tooOld}"
    else
      {
        cudaCapabilities = config.cudaCapabilities or [ ];
        realArches = map (capability: "sm_${digits capability}") (config.cudaCapabilities or [ ]);
      };
}
