# A wheel of vLLM with code for the capabilities of this nixpkgs and for nothing else: the sources,
# patches and settings of the recipe that legacy-cuda build follows, with the PyTorch of its lock and
# this nixpkgs' CUDA.
{
  lib,
  symlinkJoin,
  fetchPypi,
  cmake,
  cudaPackages,
  ninja,
  # the recipe of recipes.toml, and a Python with the wheels of its lock
  recipe,
  environment,
}:

let
  folder = ../../python/src/legacy_cuda/patches + "/${recipe.package}/${recipe.version}";
  patches = map (name: folder + "/${name}") (builtins.attrNames (builtins.readDir folder));
  architectures = map (name: "${lib.removePrefix "sm_" name}-real") cudaPackages.flags.realArches;
  filled =
    builtins.replaceStrings
      [ "{architectures}" "{build}" ]
      [
        (lib.concatStringsSep ";" architectures)
        "build-temp"
      ];
  # As the recipe's back end would have them, setuptools.
  option = name: filled recipe.settings.${name};
  # One folder, as CMake's FindCUDAToolkit and PyTorch's CMake files look for it.
  toolkit = symlinkJoin {
    name = "cuda-${cudaPackages.cudaMajorMinorVersion}";
    paths = lib.concatMap (package: map (output: package.${output}) package.outputs) (
      [
        # its name now, and before
        (cudaPackages.cccl or cudaPackages.cuda_cccl)
      ]
      ++ (with cudaPackages; [
        cuda_cudart
        cuda_nvcc
        cuda_nvrtc
        cuda_nvtx
        libcublas
        libcurand
        libcusolver
        libcusparse
      ])
    );
  };
  file = "${recipe.package}-${recipe.version}-cp38-abi3-linux_x86_64.whl";
in
cudaPackages.backendStdenv.mkDerivation (
  lib.mapAttrs (_: filled) recipe.environment
  // {
    name = file;

    src = fetchPypi {
      pname = recipe.sdist.package;
      inherit (recipe.sdist) version sha256;
    };

    nativeBuildInputs = [
      # before those of the wheels, which are for other distributions
      cmake
      ninja
      toolkit
      environment
    ];

    CUDA_HOME = toolkit;
    # the newest compiler that this CUDA takes
    CUDAHOSTCXX = "${cudaPackages.backendStdenv.cc}/bin/c++";
    # Where libraries are is in the recipe. In a wheel, Nix would not see a path of its store.
    NIX_DONT_SET_RPATH = "1";

    buildCommand = ''
      export HOME="$TMPDIR" MAX_JOBS="$NIX_BUILD_CORES"
      tar --extract --file "$src"
      cd ${recipe.package}-${recipe.version}
      # Exactly or not at all.
      for patch in ${lib.concatMapStringsSep " " (patch: "${patch}") patches}; do
        patch --strip=1 --fuzz=0 --no-backup-if-mismatch < "$patch"
      done
      python setup.py ${option "--global-option"} \
        bdist_wheel ${option "--build-option"} --dist-dir dist
      mv dist/${file} "$out"
    '';

    requiredSystemFeatures = [ "big-parallel" ];

    passthru = {
      inherit file recipe;
    };

    meta = {
      description = recipe.summary;
      license = lib.licenses.asl20;
      platforms = [ "x86_64-linux" ];
    };
  }
)
