# Triton as nixpkgs builds it, with our patches. They are written for an installed Triton, so they are
# applied to one.
{
  lib,
  python3Packages,
  # the rows of patched.toml about Triton
  series,
}:

let
  triton = python3Packages.triton-cuda;
  row = lib.findFirst (row: row.version == triton.version) (throw ''
    nixpkgs has Triton ${triton.version}; there are patches for ${
      lib.concatMapStringsSep ", " (row: row.version) series
    }
  '') series;
  folder = ../../python/src/legacy_cuda/patches/triton + "/${row.version}";
  patches = map (name: folder + "/${name}") (builtins.attrNames (builtins.readDir folder));
  modules = map (
    module: module // { path = ../../python/src/legacy_cuda + "/${module.source}"; }
  ) row.modules;
in
triton.overridePythonAttrs (previous: {
  # Exactly or not at all: no fuzz. An offset is fine, nixpkgs patches the same files.
  postInstall =
    (previous.postInstall or "")
    + lib.concatMapStrings (patch: ''
      patch --strip=1 --fuzz=0 --no-backup-if-mismatch \
        --directory="$out/${python3Packages.python.sitePackages}" < ${patch}
    '') patches
    + lib.concatMapStrings (module: ''
      cp --recursive --no-preserve=mode ${module.path} \
        "$out/${python3Packages.python.sitePackages}/${module.target}"
    '') modules;
})
