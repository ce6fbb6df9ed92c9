# What the flake packages: for a set of GPUs, and by GPU name.
{
  catalog,
  stacks,
  nixpkgs,
  nixpkgs-25_11,
  cuda-legacy,
  system,
}:
let
  inherit (builtins)
    concatMap
    elem
    filter
    head
    listToAttrs
    ;

  locks = import ./locks.nix;
  cuda = import ./nixpkgs.nix {
    inherit catalog cuda-legacy system;
    inherit (stacks) holds;
  };
  pythonOf = import ./python.nix;

  # The wheels of the stack for these cards, and what nixpkgs compiles for their capabilities.
  setFor =
    gpus:
    let
      stack = stacks.resolve gpus;
      wanted = {
        capabilities = stacks.capabilitiesOf gpus;
        inherit (stack) toolkit;
      };
      # cuda-legacy follows the nixpkgs of that time.
      release = if cuda.brings nixpkgs stack.toolkit then nixpkgs else nixpkgs-25_11;
      pkgs = cuda.importFor release wanted;
      # The release with PyTorch and Triton that patches of ours are nearest to.
      sources = cuda.importFor nixpkgs-25_11 wanted;
      legacy-cuda = pkgs.callPackage ../pkgs/legacy-cuda/package.nix { };
      # The wheels of a lock for a Python, with what was compiled for the cards.
      environment =
        stack: more:
        let
          python = pythonOf pkgs stack;
        in
        pkgs.callPackage ../pkgs/wheels/package.nix (
          {
            inherit python legacy-cuda stack;
            gpu = head gpus;
            wheels = locks.wheelsFor catalog.locks.${stack.lock} python.pythonVersion;
            # a lock may have packages of another one with the same patches
            patched = filter (
              row: elem row.package stack.patched && elem row.version (versionsOf stack.lock row.package)
            ) catalog.patchedList;
          }
          // more
        );
      vllm = stacks.resolveFor "vllm" gpus;
    in
    {
      inherit pkgs;
      wheels = environment stack { };
      llama-cpp = pkgs.callPackage ../pkgs/llama-cpp/package.nix { };
      ollama = pkgs.callPackage ../pkgs/ollama/package.nix { };
    }
    # PyTorch of today, where there is a Triton for the cards.
    // (
      if elem "triton" stack.patched then
        rec {
          triton = sources.callPackage ../pkgs/triton/package.nix {
            series = filter (row: row.package == "triton") catalog.patchedList;
          };
          torch = sources.callPackage ../pkgs/torch/package.nix { inherit triton; };
        }
      else
        { }
    )
    // (
      if vllm ? stack then
        let
          recipe = catalog.recipes.vllm;
          wheel = pkgs.callPackage ../pkgs/vllm/package.nix {
            inherit recipe;
            environment = environment {
              stack = "build-vllm";
              inherit (recipe) lock;
              inherit (catalog.locks.${recipe.lock}) pythons;
              patched = [ ];
            } { };
          };
          compiled = [
            {
              name = recipe.package;
              inherit (recipe) version;
              inherit (wheel) file;
              path = wheel;
            }
          ];
        in
        {
          vllm = environment vllm { inherit compiled; } // {
            inherit wheel;
            # for several machines
            withRay = environment vllm {
              inherit compiled;
              beside = [ (pythonOf pkgs vllm).pkgs.ray ];
            };
          };
        }
      else
        { }
    );

  versionsOf =
    lock: name:
    map (package: package.version) (
      filter (package: package.name == name) catalog.locks.${lock}.package
    );

  # One set for each capability; cards of the same one share it.
  capabilityOf = name: catalog.gpus.${name}.capability;
  sets = listToAttrs (
    map (name: {
      name = capabilityOf name;
      value = setFor [ name ];
    }) stacks.devShellNames
  );

  # nixpkgs packages these engines, whatever of them is in our own locks.
  inNixpkgs = [ "ollama" ];
  engines = [
    "torch"
    "llama-cpp"
    "ollama"
    "vllm"
  ];

  # Null where the flake has the engine for these GPUs, else the resolver's refusal.
  refusalOf =
    engine: gpus:
    let
      found = stacks.resolveFor engine gpus;
      rule = found.refusal.rule or null;
    in
    if rule == "engine-not-packaged" && elem engine inNixpkgs then
      (stacks.resolve gpus).refusal or null
    else
      found.refusal or null;

  packageOf = set: engine: if engine == "torch" then set.wheels else set.${engine};
in
rec {
  inherit engines refusalOf;

  # nixpkgs with these packages for cards in one machine, by their names. An engine that is refused
  # says so when it is asked for.
  packagesFor =
    gpus:
    let
      capabilities = stacks.capabilitiesOf gpus;
      set = if builtins.length capabilities == 1 then sets.${head capabilities} else setFor gpus;
      offer =
        engine:
        let
          refusal = refusalOf engine gpus;
        in
        if refusal == null then packageOf set engine else throw (stacks.sentence refusal);
    in
    listToAttrs (
      map (engine: {
        name = engine;
        value = offer engine;
      }) engines
    );

  # Names to derivations, for `nix build .#llama-cpp-p40`.
  packages =
    let
      forGpu =
        gpu:
        let
          set = sets.${capabilityOf gpu};
          offered = filter (engine: refusalOf engine [ gpu ] == null) engines;
          named = filter (name: set ? ${name}) (
            [
              "wheels"
              "torch"
              "triton"
            ]
            ++ filter (engine: engine != "torch") offered
          );
          image = engine: {
            name = "image-${gpu}-${engine}";
            value = set.pkgs.callPackage ../pkgs/image/package.nix {
              inherit engine;
              inherit (catalog.gpus.${gpu}) name product capability;
              program = packageOf set engine;
              driver = stacks.stackFor.${gpu}.driver.latest;
            };
          };
        in
        map (name: {
          name = "${name}-${gpu}";
          value = set.${name};
        }) named
        ++ map image offered;
      own = nixpkgs.legacyPackages.${system}.callPackage ../pkgs/legacy-cuda/package.nix { };
    in
    listToAttrs (concatMap forGpu stacks.devShellNames)
    // {
      default = own;
      legacy-cuda = own;
    };
}
