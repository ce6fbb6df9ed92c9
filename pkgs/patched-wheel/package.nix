# A published wheel with our patches: the bytes that legacy-cuda up installs.
{
  lib,
  runCommand,
  fetchPypi,
  legacy-cuda,
  # a row of patched.toml, the wheel of the lock that it is made from, a card it is for
  row,
  wheel,
  gpu,
  pythonVersion,
}:

let
  recorded = lib.findFirst (
    entry: entry.name == wheel.file
  ) (throw "patched.toml records no result for ${wheel.file}") row.wheel;
  file =
    builtins.replaceStrings [ "-${row.version}-" ] [ "-${row.version}+${row.local}-" ]
      wheel.file;
in
runCommand "${row.package}-${row.version}-${row.local}.whl"
  {
    nativeBuildInputs = [ legacy-cuda ];
    passthru = { inherit file; };
    meta.sourceProvenance = [ lib.sourceTypes.binaryNativeCode ];
  }
  ''
    export HOME="$TMPDIR" LEGACY_CUDA_CACHE="$TMPDIR/cache"
    cp ${fetchPypi wheel.source} ${wheel.file}
    legacy-cuda build ${row.package} --version ${row.version} --for ${gpu} \
      --python ${pythonVersion} --wheel ${wheel.file} --output .
    echo "${recorded.result}  ${file}" | sha256sum --check
    mv ${file} "$out"
  ''
