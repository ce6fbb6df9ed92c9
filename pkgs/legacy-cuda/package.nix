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

  dependencies = [
    (python3Packages.callPackage ../abi3info/package.nix { })
  ]
  ++ (with python3Packages; [
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
  ]);

  pythonImportsCheck = [ "legacy_cuda" ];

  meta = {
    inherit (project) description;
    license = lib.licenses.mit;
    mainProgram = "legacy-cuda";
    # The catalog's locks hold wheels for this platform.
    platforms = [ "x86_64-linux" ];
  };
}
