# An OCI image of one engine for one card: no root inside, a health check, and no compiler but the
# one that Triton calls.
# The result is a script that writes the image: ./result | docker load
{
  lib,
  dockerTools,
  coreutils,
  cudaPackages,
  curl,
  callPackage,
  # the engine's name and its package
  engine,
  program,
  # the card's row of gpus.toml: its name, what it is sold as, its capability
  name,
  product,
  capability,
  # the newest release of its driver branch
  driver,
}:

let
  settings = (import ../../nix/images.nix).${engine} {
    inherit program;
    curl = lib.getExe curl;
  };
in
dockerTools.streamLayeredImage {
  name = "legacy-cuda-${name}-${engine}";
  tag = "latest";
  passthru.compose = callPackage ../compose/package.nix {
    inherit engine;
    inherit (settings) ports;
    gpu = name;
  };
  contents = [
    dockerTools.caCertificates
    dockerTools.fakeNss
    coreutils
  ];
  fakeRootCommands = ''
    mkdir -p ./models ./tmp ./home
    chmod 1777 ./tmp
    chown -R 65534:65534 ./models ./home
  '';
  config = {
    inherit (settings) Entrypoint;
    ExposedPorts = lib.genAttrs (map (port: "${toString port}/tcp") settings.ports) (_: { });
    User = "65534:65534";
    WorkingDir = "/home";
    Volumes."/models" = { };
    Healthcheck = {
      Test = [ "CMD" ] ++ settings.health;
      # nanoseconds
      Interval = settings.seconds * 1000000000;
      Timeout = 20 * 1000000000;
      StartPeriod = 300 * 1000000000;
    };
    Env = lib.mapAttrsToList (key: value: "${key}=${value}") (
      {
        HOME = "/home";
        # what the container runtime puts in: the driver's libraries and nvidia-smi
        NVIDIA_VISIBLE_DEVICES = "all";
        NVIDIA_DRIVER_CAPABILITIES = "compute,utility";
        LD_LIBRARY_PATH = "/usr/lib64:/usr/lib/x86_64-linux-gnu";
        CUDA_DEVICE_ORDER = "PCI_BUS_ID";
      }
      // lib.optionalAttrs (lib.elem "triton" (program.stack.patched or [ ])) {
        # Triton links what it compiles with the one in here. At run time the driver's own answers, which
        # LD_LIBRARY_PATH finds first.
        TRITON_LIBCUDA_PATH = "${lib.getOutput "stubs" cudaPackages.cuda_cudart}/lib/stubs";
      }
      // (settings.environment or { })
    );
    Labels = {
      "org.opencontainers.image.title" = "${engine} for ${product}";
      "org.opencontainers.image.description" =
        "${engine} with code for capability ${capability}; the host needs NVIDIA's driver, proprietary module, for example ${driver}";
      "org.opencontainers.image.version" = program.version or "";
      "dev.legacy-cuda.gpu" = name;
      "dev.legacy-cuda.capability" = capability;
      "dev.legacy-cuda.engine" = engine;
    };
  };
}
