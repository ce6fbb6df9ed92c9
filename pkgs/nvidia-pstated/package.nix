# A daemon that puts idle cards into a state that saves power, which nixpkgs has not.
{
  lib,
  stdenv,
  fetchFromGitHub,
  fetchurl,
  cmake,
  cudaPackages,
  autoAddDriverRunpath,
}:

let
  # NVIDIA's header files of NVAPI, at the address and with the sha256 of nvidia-pstated's CMakeLists.txt.
  nvapi = fetchurl {
    url = "https://download.nvidia.com/XFree86/nvapi-open-source-sdk/R555-OpenSource.tar";
    sha256 = "71339c274a6a633f19b6bd358c7f3045063c6bc106b7dc488aaa7360a6d2b9d7";
  };
in
stdenv.mkDerivation (finalAttrs: {
  pname = "nvidia-pstated";
  version = "1.0.9";

  src = fetchFromGitHub {
    owner = "sasha0552";
    repo = "nvidia-pstated";
    tag = "v${finalAttrs.version}";
    hash = "sha256-EhHk5zqnxkvfu/o9rJ5/HhTbS3/2l/bK071yVZY2BT4=";
  };

  nativeBuildInputs = [
    autoAddDriverRunpath
    cmake
    cudaPackages.cuda_nvcc
  ];

  buildInputs = [
    cudaPackages.cuda_cudart
    cudaPackages.cuda_nvml_dev
  ];

  # CMakeLists.txt looks for R555-OpenSource/nvapi.h below this folder.
  preConfigure = ''
    mkdir nvapi
    tar --extract --file ${nvapi} --directory nvapi
    header=$(find "$PWD/nvapi" -path '*/R555-OpenSource/nvapi.h' | head --lines=1)
    cmakeFlagsArray+=("-DFETCHCONTENT_SOURCE_DIR_NVAPI=''${header%/R555-OpenSource/nvapi.h}")
  '';

  # It has no rule for this.
  installPhase = ''
    runHook preInstall
    install -D --target-directory="$out/bin" nvidia-pstated
    runHook postInstall
  '';

  meta = {
    description = "Daemon that manages the performance states of NVIDIA GPUs";
    homepage = "https://github.com/sasha0552/nvidia-pstated";
    license = lib.licenses.gpl3Only;
    mainProgram = "nvidia-pstated";
    platforms = [ "x86_64-linux" ];
  };
})
