{
  lib,
  python3Packages,
}:

let
  inherit (fromTOML (builtins.readFile ../../python/pyproject.toml)) project;
in
python3Packages.buildPythonApplication {
  pname = project.name;
  inherit (project) version;
  pyproject = true;

  src = ../../python;

  build-system = [ python3Packages.setuptools ];

  dependencies = with python3Packages; [
    isal
    lz4
    nvidia-ml-py
    packaging
    prometheus-client
    pyelftools
    pyproject-hooks
    requests
    rich
    uv
    zstandard
  ];

  # nixpkgs has none. build/finish.py imports it, and nothing else does, when it looks into a wheel
  # that says that it is for the stable ABI.
  pythonRemoveDeps = [ "abi3info" ];

  pythonImportsCheck = [ "legacy_cuda" ];

  meta = {
    inherit (project) description;
    license = lib.licenses.mit;
    mainProgram = "legacy-cuda";
    # The catalog's locks hold wheels for this platform.
    platforms = [ "x86_64-linux" ];
  };
}
