# The stack's wheels in one environment: the files of its lock, by their sha256, and those with
# patches of ours. Nothing in them is made to fit NixOS: the wrapper says where libraries are, and
# where Triton has code for the card, the driver's library, an assembler and a compiler for it.
# Other programs that wheels bring are of no use on NixOS.
{
  lib,
  stdenv,
  runCommand,
  callPackage,
  fetchPypi,
  addDriverRunpath,
  cudaPackages,
  makeBinaryWrapper,
  uv,
  zlib,
  legacy-cuda,
  python,
  # an answer of the resolver, its wheels for this Python, and those rows of patched.toml that are
  # about them
  stack,
  wheels,
  patched,
  # wheels that were compiled for the cards: { name, version, file, path }
  compiled ? [ ],
  # packages of nixpkgs that are found where a wheel does not have the same
  beside ? [ ],
  # a card that it is for
  gpu,
}:

let
  rowOf = wheel: lib.findFirst (row: row.package == wheel.name) null patched;
  fetched =
    wheel:
    let
      row = rowOf wheel;
      made = callPackage ../patched-wheel/package.nix {
        inherit
          gpu
          legacy-cuda
          row
          wheel
          ;
        inherit (python) pythonVersion;
      };
    in
    if row == null then
      {
        inherit (wheel) file;
        requirement = "${wheel.name}==${wheel.version}";
        path = fetchPypi wheel.source;
      }
    else
      {
        inherit (made) file;
        requirement = "${wheel.name}==${row.version}+${row.local}";
        path = made;
      };
  files =
    map fetched wheels
    ++ map (wheel: {
      inherit (wheel) file path;
      requirement = "${wheel.name}==${wheel.version}";
    }) compiled;

  triton = import ../../nix/triton.nix {
    inherit lib stdenv cudaPackages;
    inherit (addDriverRunpath) driverLink;
  } stack;
in
runCommand "legacy-cuda-wheels-${stack.stack}"
  {
    nativeBuildInputs = [
      makeBinaryWrapper
      uv
    ];
    libraries = lib.concatStringsSep ":" [
      # where NixOS has the driver's own libraries (libcuda.so.1)
      "${addDriverRunpath.driverLink}/lib"
      "${lib.getLib stdenv.cc.cc}/lib"
      "${zlib}/lib"
    ];
    passthru = {
      inherit python stack files;
    };
    meta = {
      description = "Wheels of the stack ${stack.stack} (${stack.lock}), as its lock has them";
      license = lib.licenses.unfree; # NVIDIA's libraries
      sourceProvenance = [ lib.sourceTypes.binaryNativeCode ];
      mainProgram = "python3";
      platforms = [ "x86_64-linux" ];
    };
  }
  ''
    export HOME="$TMPDIR" UV_CACHE_DIR="$TMPDIR/uv"
    mkdir wheels
    # uv reads a wheel's name from its file's
    ${lib.concatMapStrings (wheel: ''
      ln -s ${wheel.path} ${lib.escapeShellArg "wheels/${wheel.file}"}
    '') files}
    uv venv --offline --python ${lib.getExe python} --no-python-downloads "$out"
    # By name and not by file, which would be written down with its path. Compiled now, because a
    # store cannot be written to, and without times, because those of a store are all the same.
    export PYC_INVALIDATION_MODE=UNCHECKED_HASH
    uv pip install --offline --no-index --find-links wheels --no-deps --no-build --link-mode copy \
      --compile-bytecode --python "$out/bin/python" ${
        lib.escapeShellArgs (map (wheel: wheel.requirement) files)
      }

    ${lib.concatMapStrings (package: ''
      echo ${package}/${python.sitePackages} >> "$out/${python.sitePackages}/beside.pth"
    '') (if beside == [ ] then [ ] else python.pkgs.requiredPythonModules beside)}
    # Programs name $out/bin/python in their first line, so this is what gets the libraries.
    mv "$out/bin/python" "$out/bin/.python-unwrapped"
    makeWrapper "$out/bin/.python-unwrapped" "$out/bin/python" \
      --suffix LD_LIBRARY_PATH : "$libraries" \
      --set-default CUDA_DEVICE_ORDER PCI_BUS_ID ${
        lib.concatStringsSep " " (
          lib.mapAttrsToList (name: value: "--set-default ${name} ${lib.escapeShellArg value}") triton
        )
      }
    "$out/bin/python" -c 'import torch'
  ''
