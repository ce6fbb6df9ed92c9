# From GPUs and an engine to a stack, or to a refusal: the rules and the words of
# legacy_cuda/resolve.py, once more for Nix. tests/nix holds the two against each other. Plain
# builtins, no nixpkgs.
catalog:
let
  inherit (builtins)
    all
    any
    compareVersions
    concatMap
    concatStringsSep
    elem
    elemAt
    filter
    fromJSON
    head
    length
    sort
    ;

  last = list: elemAt list (length list - 1);
  # Each once, where it stands first.
  unique = builtins.foldl' (seen: item: if elem item seen then seen else seen ++ [ item ]) [ ];
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
    if a.capability == b.capability then a.name < b.name else number a.capability < number b.capability;

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

  # The branches that know all of them, whatever the flavour of the module.
  branchesKnowing =
    capabilities:
    filter (
      branch: all (capability: any (module: holds module capability) branch.module) capabilities
    ) catalog.branchList;

  named = gpu: "${gpu.product} (${gpu.capability})";
  namesOf = gpus: concatStringsSep ", " (unique (map named gpus));

  ruleFor =
    engine: gpu:
    head (
      filter (rule: holds rule gpu.capability) engine.rule
      ++ [ (throw "engine ${engine.name} has no rule for capability ${gpu.capability}") ]
    );

  # Why no driver serves all of them: a sentence for each capability, and what follows.
  withoutDriver =
    gpus: conclusion:
    map (
      capability:
      let
        some = driversFor [ capability ];
        first = (head some).branch.branch;
        newest = (last some).branch.branch;
        span = if first == newest then "branch ${first}" else "branches ${first} to ${newest}";
        flavours = concatStringsSep " or " (unique (map (driver: driver.flavour) some));
        members = filter (gpu: gpu.capability == capability) gpus;
      in
      "${namesOf members}: ${span}, ${flavours} kernel module"
    ) (unique (map (gpu: gpu.capability) gpus))
    ++ [ conclusion ];

  # Why no stack covers all of them: a sentence for each lock of the engine.
  withoutStack =
    engine: gpus: usable:
    let
      capabilities = unique (map (gpu: gpu.capability) gpus);
      newest = (last usable).branch.branch;
      stacks = filter (stack: stack.engine == engine.name) catalog.stackList;
      sentence =
        lock:
        let
          stack = last (filter (stack: stack.lock == lock) stacks);
          absent = filter (capability: !elem capability stack.covers) capabilities;
          jit = capability: fromJSON (stack.jit_driver.${capability} or "0");
          needed = builtins.foldl' (
            worst: one: if jit one >= jit worst then one else worst
          ) (head capabilities) capabilities;
        in
        if absent != [ ] then
          "${lock}: no code for capability ${concatStringsSep ", " absent}"
        else if !any (runsCuda stack.cuda) usable then
          "${lock}: CUDA ${stack.cuda} needs driver ${
            catalog.toolkits.${stack.cuda}.driver_min
          } or newer, these GPUs end with branch ${newest}"
        else
          "${lock}: its PTX for ${needed} needs driver branch ${toString (jit needed)} or newer, these GPUs end with branch ${newest}";
    in
    map sentence (unique (map (stack: stack.lock) stacks));

  resolveSorted =
    engine: gpus:
    let
      capabilities = map (gpu: gpu.capability) gpus;
      withVerdict = verdict: filter (gpu: (ruleFor engine gpu).verdict == verdict) gpus;
      refused = withVerdict "refused";
      notPackaged = withVerdict "not-packaged";
      reasons =
        some: unique (map (gpu: "${engine.title} on ${named gpu}: ${(ruleFor engine gpu).reason}") some);

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
      refuse "not-legacy" [
        "${namesOf gpus}: newer than Volta, so current stock builds carry code for it"
      ]
    else if refused != [ ] then
      refuse "engine-refused" (reasons refused)
    # Newer cards beside a legacy one do not count here: driver and coverage decide.
    else if any isLegacy notPackaged then
      refuse "engine-not-packaged" (reasons notPackaged)
    else if usable == [ ] && branchesKnowing capabilities != [ ] then
      refuse "kernel-module-flavour" (
        withoutDriver gpus "branch ${(last (branchesKnowing capabilities)).branch} knows all of them, but one machine loads one flavour of the kernel module, and no flavour serves all of them"
      )
    else if usable == [ ] then
      refuse "driver-branch" (
        withoutDriver gpus "a machine runs one driver, and no branch serves all of them"
      )
    else if candidates == [ ] then
      refuse "coverage" (withoutStack engine gpus usable)
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
  inherit holds;

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

  # Every driver that serves them, oldest branch first: { branch, flavour }.
  driversServing = names: driversFor (capabilitiesOf names);

  # What these cards compute with, oldest first, each once.
  capabilitiesOf = names: unique (map (gpu: gpu.capability) (sort older (map catalog.findGpu names)));

  # A refusal in one sentence.
  sentence =
    refusal:
    "${refusal.engine} on ${concatStringsSep ", " (unique refusal.gpus)} is refused [${refusal.rule}]: ${concatStringsSep "; " refusal.because}";

  # Every card of the catalog by itself, by name.
  stackFor = builtins.mapAttrs (name: _: resolve [ name ]) catalog.gpus;

  # The cards that a stack is offered for. Their names are the names of the dev shells.
  devShellNames = filter (name: stackFor.${name} ? stack) (builtins.attrNames catalog.gpus);
}
