# nixpkgs for exactly these capabilities, one import for each set of them: whatever is compiled with
# CUDA in it has code for these and for nothing else.
{
  catalog,
  holds,
  cuda-legacy,
  system,
}:
let
  inherit (builtins)
    any
    attrNames
    compareVersions
    concatMap
    elemAt
    filter
    head
    length
    replaceStrings
    sort
    splitVersion
    ;

  attributeOf = toolkit: "cudaPackages_" + replaceStrings [ "." ] [ "_" ] toolkit;
  majorOf = toolkit: "cudaPackages_" + head (splitVersion toolkit);

  manifestsOf =
    lib: import (cuda-legacy + "/pkgs/development/cuda-modules/_cuda/manifests") { inherit lib; };

  # Of these cuDNN versions the newest that still has code for all of them.
  cudnnFor =
    capabilities: versions:
    let
      dropped = concatMap (
        row: if row ? dropped_in && any (holds row) capabilities then [ row.dropped_in ] else [ ]
      ) catalog.cudnnList;
      serves = version: !any (bound: compareVersions version bound >= 0) dropped;
      fit = sort (a: b: compareVersions a b < 0) (filter serves versions);
    in
    if fit == [ ] then
      throw "no cuDNN of cuda-legacy has code for ${toString capabilities}"
    else
      elemAt fit (length fit - 1);

  # The toolkit becomes the default, with a cuDNN that still serves these capabilities. Members of a
  # set take theirs from its manifests, so the set is made anew with another manifest.
  overlay =
    { capabilities, toolkit }:
    final: prev:
    let
      known = (manifestsOf final.lib).cudnn;
      version = cudnnFor capabilities (attrNames known);
    in
    {
      ${attributeOf toolkit} = final.callPackage final._cuda.bootstrapData.cudaPackagesPath {
        manifests = prev.${attributeOf toolkit}.manifests // {
          cudnn = {
            release_label = version;
          }
          // known.${version};
        };
      };
      ${majorOf toolkit} = final.${attributeOf toolkit};
      cudaPackages = final.${attributeOf toolkit};
    };
in
rec {
  # Does this nixpkgs have the toolkit itself? A removed one may be there as a `throw`.
  brings =
    nixpkgs: toolkit:
    let
      found = builtins.tryEval (
        nixpkgs.legacyPackages.${system}.${attributeOf toolkit}.cudaMajorMinorVersion or null
      );
    in
    found.success && found.value == toolkit;

  importFor =
    nixpkgs:
    { capabilities, toolkit }@wanted:
    import nixpkgs {
      inherit system;
      config = {
        allowUnfree = true;
        cudaSupport = true;
        cudaCapabilities = capabilities;
        cudaForwardCompat = false;
      };
      # cuda-legacy replaces the table of all manifests, so it is left out where it is not needed.
      overlays = (if brings nixpkgs toolkit then [ ] else [ (import (cuda-legacy + "/overlays")) ]) ++ [
        (overlay wanted)
      ];
    };
}
