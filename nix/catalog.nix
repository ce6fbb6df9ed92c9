# The catalog, from the same TOML files that Python reads (python/src/legacy_cuda/catalog).
# Plain builtins, no nixpkgs. Rows are as in the files; what a key means is written there.
let
  inherit (builtins)
    concatMap
    listToAttrs
    replaceStrings
    ;

  data = ../python/src/legacy_cuda/catalog/data;
  read = name: builtins.fromTOML (builtins.readFile (data + "/${name}.toml"));

  # Of rows with the same key the first one stays, as listToAttrs has it.
  pair = name: value: { inherit name value; };
  by = key: rows: listToAttrs (map (row: pair row.${key} row) rows);

  # How names are compared: case, blanks, "-", "_" and the word NVIDIA make no difference.
  upper = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";
  lower = "abcdefghijklmnopqrstuvwxyz";
  letters = text: builtins.genList (at: builtins.substring at 1 text) (builtins.stringLength text);
  lowercase = replaceStrings (letters upper) (letters lower);
  ignored = [
    "nvidia"
    " "
    "\t"
    "\n"
    "-"
    "_"
  ];
  normal = text: replaceStrings ignored (map (_: "") ignored) (lowercase text);

  gpuList = (read "gpus").gpu;
  stackList = (read "stacks").stack;
  recipeList = (read "recipes").recipe;

  # A name wins over another card's alias; of cards that share a PCI id, the first one wins.
  index = listToAttrs (
    map (gpu: pair (normal gpu.name) gpu) gpuList
    ++ concatMap (
      gpu: map (text: pair (normal text) gpu) (gpu.aliases ++ [ gpu.product ] ++ gpu.pci_ids)
    ) gpuList
  );
in
{
  # Lists keep the order of the files: generations of GPUs, driver branches and stacks oldest first.
  inherit gpuList stackList;
  branchList = (read "drivers").branch;
  cudnnList = (read "cudnn").cudnn;
  patchedList = (read "patched").patched;

  gpus = by "name" gpuList;
  stacks = by "name" stackList;
  capabilities = by "capability" (read "capabilities").capability;
  toolkits = by "version" (read "toolkits").toolkit;
  engines = by "name" (read "engines").engine;
  recipes = by "package" recipeList;
  # of the stacks, and of what is compiled for them
  locks = listToAttrs (map (row: pair row.lock (read "locks/${row.lock}")) (stackList ++ recipeList));

  # The card of that name, alias, product name or PCI id ("10de:1b38").
  findGpu = text: index.${normal text} or (throw "no GPU called \"${text}\" is in the catalog");
}
