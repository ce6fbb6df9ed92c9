# From GPUs and an engine to a stack, or to a refusal: the rules of legacy_cuda/resolve.py, once
# more for Nix. tests/nix holds the two against each other. Plain builtins, no nixpkgs.
catalog:
let
  inherit (builtins)
    all
    any
    compareVersions
    concatMap
    elem
    elemAt
    filter
    fromJSON
    head
    length
    sort
    ;

  last = list: elemAt list (length list - 1);
  atLeast = least: version: compareVersions version least >= 0;

  # "6.1" as 61 and "12.0" as 120, to compare with.
  number =
    capability:
    let
      parts = builtins.splitVersion capability;
    in
    10 * fromJSON (head parts) + fromJSON (last parts);
  holds =
    range: capability:
    number range.capability_min <= number capability
    && number capability <= number range.capability_max;

  isLegacy = gpu: catalog.capabilities.${gpu.capability}.legacy;
  older =
    a: b:
    if a.capability == b.capability then
      a.name < b.name
    else
      number a.capability < number b.capability;

  # One machine loads one branch with one flavour of its kernel module: these pairs, oldest first.
  drivers = concatMap (
    branch:
    map (module: {
      inherit branch;
      inherit (module) flavour;
      serves = holds module;
    }) branch.module
  ) catalog.branchList;
  driversFor = capabilities: filter (driver: all driver.serves capabilities) drivers;
  runsCuda = cuda: driver: atLeast catalog.toolkits.${cuda}.driver_min driver.branch.latest;

  # Does the driver run the stack's CUDA, and compile the PTX that these capabilities need?
  runsStack =
    capabilities: stack: driver:
    runsCuda stack.cuda driver
    && all (
      capability: atLeast (stack.jit_driver.${capability} or "0") driver.branch.branch
    ) capabilities;

  stacksFor =
    engine: capabilities: drivers:
    filter (
      stack:
      stack.engine == engine.name
      && all (capability: elem capability stack.covers) capabilities
      && any (runsStack capabilities stack) drivers
    ) catalog.stackList;

  # Any branch that knows all of them, whatever the flavour of its module?
  sharesBranch =
    capabilities:
    any (
      branch: all (capability: any (module: holds module capability) branch.module) capabilities
    ) catalog.branchList;

  resolveSorted =
    engine: gpus:
    let
      capabilities = map (gpu: gpu.capability) gpus;
      ruleFor =
        gpu:
        head (
          filter (rule: holds rule gpu.capability) engine.rule
          ++ [ (throw "engine ${engine.name} has no rule for capability ${gpu.capability}") ]
        );
      withVerdict = verdict: filter (gpu: (ruleFor gpu).verdict == verdict) gpus;
      refused = withVerdict "refused";
      notPackaged = withVerdict "not-packaged";
      reasons = map (gpu: "${gpu.product} (${gpu.capability}): ${(ruleFor gpu).reason}");

      usable = driversFor capabilities;
      candidates = stacksFor engine capabilities usable;
      # Stacks may share the newest lock: the one meant for the oldest GPU gives the name.
      sameLock = filter (stack: stack.lock == (last candidates).lock) candidates;
      atHome = filter (stack: elem (head capabilities) stack.home) sameLock;
      stack = head (atHome ++ [ (last sameLock) ]);
      driver = last (filter (runsStack capabilities stack) usable);

      refuse = rule: because: {
        refusal = {
          inherit rule because;
          engine = engine.name;
          gpus = map (gpu: gpu.name) gpus;
        };
      };
    in
    if !any isLegacy gpus then
      refuse "not-legacy" [ "newer than Volta, so current stock builds carry code for it" ]
    else if refused != [ ] then
      refuse "engine-refused" (reasons refused)
    # Newer cards beside a legacy one do not count here: driver and coverage decide.
    else if any isLegacy notPackaged then
      refuse "engine-not-packaged" (reasons notPackaged)
    else if usable == [ ] && sharesBranch capabilities then
      refuse "kernel-module-flavour" [ "no flavour of the kernel module serves all of them" ]
    else if usable == [ ] then
      refuse "driver-branch" [ "a machine runs one driver, and no branch serves all of them" ]
    else if candidates == [ ] then
      refuse "coverage" [ "no stack that their driver can run holds code for all of them" ]
    else
      {
        gpus = map (gpu: gpu.name) gpus;
        engine = engine.name;
        stack = stack.name;
        inherit (stack)
          lock
          cuda
          toolkit
          pythons
          ;
        # Packages of the lock that the Python tool installs with our patches.
        patched = stack.patched or [ ];
        # Packages that are compiled for these GPUs.
        compiled = stack.compiled or [ ];
        gccMax = catalog.toolkits.${stack.toolkit}.gcc_max;
        driver = {
          inherit (driver.branch) branch latest;
          inherit (driver) flavour;
          # Below linuxPackages.nvidiaPackages; null where nixpkgs has no attribute for the branch.
          nixosAttribute = driver.branch.nixos_attribute or null;
        };
      };
in
rec {
  # resolveFor "torch" [ "p40" "p4" ]: names, aliases, product names or PCI ids, one for each card.
  resolveFor =
    engine: names:
    let
      known = catalog.engines.${engine} or (throw "no engine \"${engine}\" is in the catalog");
    in
    if names == [ ] then
      throw "resolve needs at least one GPU"
    else
      resolveSorted known (sort older (map catalog.findGpu names));

  resolve = resolveFor "torch";

  # Every card of the catalog by itself, by name.
  stackFor = builtins.mapAttrs (name: _: resolve [ name ]) catalog.gpus;

  # The cards that a stack is offered for. Their names are the names of the dev shells.
  devShellNames = filter (name: stackFor.${name} ? stack) (builtins.attrNames catalog.gpus);
}
