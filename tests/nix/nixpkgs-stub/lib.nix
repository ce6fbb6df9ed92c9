# The functions of nixpkgs' lib that the flake uses, and a small module system. The tests run with the
# real lib as well where LEGACY_CUDA_NIXPKGS names a checkout.
let
  inherit (builtins)
    all
    any
    attrNames
    compareVersions
    concatLists
    concatMap
    concatStringsSep
    elem
    elemAt
    filter
    foldl'
    genList
    head
    isAttrs
    isBool
    isFunction
    isInt
    isList
    isPath
    isString
    length
    listToAttrs
    mapAttrs
    substring
    ;

  findFirst =
    test: otherwise: list:
    let
      found = filter test list;
    in
    if found == [ ] then otherwise else head found;
  unique = foldl' (seen: item: if elem item seen then seen else seen ++ [ item ]) [ ];
  concatMapStringsSep =
    between: make: list:
    concatStringsSep between (map make list);
  optional = condition: item: if condition then [ item ] else [ ];
  genAttrs =
    names: make:
    listToAttrs (
      map (name: {
        inherit name;
        value = make name;
      }) names
    );
  escapeShellArg =
    text:
    let
      plain = toString text;
    in
    if builtins.match "[[:alnum:],._+:@%/-]+" plain != null then
      plain
    else
      "'${builtins.replaceStrings [ "'" ] [ "'\\''" ] plain}'";

  # Properties -------------------------------------------------------------------------------------
  isA = kind: value: isAttrs value && value._type or "" == kind;
  mkOverride = priority: content: {
    _type = "override";
    inherit priority content;
  };
  mkIf = condition: content: {
    _type = "if";
    inherit condition content;
  };
  mkMerge = contents: {
    _type = "merge";
    inherit contents;
  };

  # Down to the leaves: a condition is only looked at where its value is wanted.
  pushDown =
    value:
    if isA "merge" value then
      concatMap pushDown value.contents
    else if isA "if" value then
      map (mapAttrs (_: mkIf value.condition)) (pushDown value.content)
    else
      [ value ];
  discharge =
    value:
    if isA "merge" value then
      concatMap discharge value.contents
    else if isA "if" value then
      if value.condition then discharge value.content else [ ]
    else
      [ value ];

  # The values of the strongest priority among definitions.
  strongest =
    values:
    let
      rank = value: if isA "override" value then value.priority else 100;
      least = foldl' (a: value: if rank value < a then rank value else a) 10000 values;
    in
    map (value: if isA "override" value then value.content else value) (
      filter (value: rank value == least) values
    );
  mergeLeaf =
    type: place: definitions:
    let
      values = strongest (concatMap discharge definitions);
      bad = filter (value: !type.check value) values;
    in
    if bad != [ ] then
      throw "A definition for option `${place}' is not of type `${type.name}': ${toJSON' (head bad)}"
    else
      type.merge place values;
  toJSON' = value: if isFunction value then "a function" else builtins.toJSON value;

  # Types ------------------------------------------------------------------------------------------
  same =
    place: values:
    if length values == 1 || all (value: value == head values) values then
      head values
    else
      throw "The option `${place}' has conflicting definition values";
  simple = name: check: {
    _type = "option-type";
    inherit name check;
    merge = same;
  };
  listOf = type: {
    _type = "option-type";
    name = "list of ${type.name}";
    check = isList;
    merge = place: values: map (value: mergeLeaf type place [ value ]) (concatLists values);
  };
  attrsOf = type: {
    _type = "option-type";
    name = "attribute set of ${type.name}";
    check = isAttrs;
    merge =
      place: values:
      let
        pushed = concatMap pushDown values;
        names = unique (concatMap attrNames pushed);
        of = name: concatMap (value: optional (value ? ${name}) value.${name}) pushed;
        kept = filter (name: concatMap discharge (of name) != [ ]) names;
      in
      genAttrs kept (name: mergeLeaf type "${place}.${name}" (of name));
  };
  anything = {
    _type = "option-type";
    name = "anything";
    check = _: true;
    merge =
      place: values:
      if all (value: isAttrs value && !(value ? outPath)) values && values != [ ] then
        (attrsOf anything).merge place values
      else if all isList values then
        concatLists values
      else
        same place values;
  };
  submodule = module: {
    _type = "option-type";
    name = "submodule";
    check = value: isAttrs value || isFunction value;
    merge =
      place: values:
      (evalModules {
        modules = [ module ] ++ values;
        inherit place;
      }).config;
  };
  types = {
    inherit
      anything
      attrsOf
      listOf
      submodule
      ;
    attrs = anything // {
      name = "attrs";
      check = isAttrs;
    };
    bool = simple "boolean" isBool;
    int = simple "integer" isInt;
    ints.positive = simple "positive integer" (value: isInt value && value > 0);
    port = simple "port" (value: isInt value && value >= 0 && value <= 65535);
    str = simple "string" isString;
    lines = simple "strings" isString // {
      merge = _: concatStringsSep "\n";
    };
    strMatching =
      pattern:
      simple "string matching the pattern ${pattern}" (
        value: isString value && builtins.match pattern value != null
      );
    path = simple "path" (value: isPath value || isString value || value ? outPath);
    package = simple "package" (value: isAttrs value && value ? outPath);
    raw = simple "raw value" (_: true);
    enum =
      values: simple "one of ${concatStringsSep ", " (map toString values)}" (value: elem value values);
    nonEmptyListOf =
      type:
      listOf type
      // {
        name = "non-empty list of ${type.name}";
        check = value: isList value && value != [ ];
      };
    either = one: other: {
      _type = "option-type";
      name = "${one.name} or ${other.name}";
      check = value: one.check value || other.check value;
      merge =
        place: values: if all one.check values then one.merge place values else other.merge place values;
    };
    nullOr = type: {
      _type = "option-type";
      name = "null or ${type.name}";
      check = value: value == null || type.check value;
      merge = place: values: if all (value: value == null) values then null else type.merge place values;
    };
  };

  # Modules ----------------------------------------------------------------------------------------
  special = [
    "_file"
    "key"
    "imports"
    "options"
    "config"
    "meta"
  ];
  evalModules =
    {
      modules,
      specialArgs ? { },
      place ? "",
    }:
    let
      arguments = specialArgs // {
        inherit config;
        lib = lib;
        options = declared;
      };
      load =
        module:
        if isFunction module then
          load (module (arguments // { pkgs = arguments.pkgs or null; }))
        else if isPath module || isString module then
          load (import module)
        else
          module;
      # Every module once, by its key or its path.
      collect =
        seen: pending:
        if pending == [ ] then
          seen
        else
          let
            first = head pending;
            rest = builtins.tail pending;
            module = load first;
            key = if isPath first then toString first else module.key or null;
          in
          if key != null && any (one: one.key == key) seen then
            collect seen rest
          else
            collect (seen ++ [ { inherit key module; } ]) (module.imports or [ ] ++ rest);
      all' = map (one: one.module) (collect [ ] modules);
      configOf =
        module:
        if module ? config || module ? options then
          module.config or { }
        else
          builtins.removeAttrs module special;

      mergeTrees =
        trees:
        let
          names = unique (concatMap attrNames trees);
        in
        genAttrs names (
          name:
          let
            here = concatMap (tree: optional (tree ? ${name}) tree.${name}) trees;
          in
          if isA "option" (head here) then
            if length here > 1 then throw "option ${name} is declared twice" else head here
          else
            mergeTrees here
        );
      declared = mergeTrees (map (module: module.options or { }) all');

      build =
        path: options: definitions:
        let
          pushed = concatMap pushDown definitions;
          unknown = filter (name: !(options ? ${name})) (unique (concatMap attrNames pushed));
        in
        if unknown != [ ] then
          throw "The option `${concatStringsSep "." (path ++ [ (head unknown) ])}' does not exist"
        else
          mapAttrs (
            name: option:
            let
              here = concatMap (value: optional (value ? ${name}) value.${name}) pushed;
              where = concatStringsSep "." (path ++ [ name ]);
              type = option.type or types.raw;
              given = if option ? default then [ (mkOverride 1500 option.default) ] else [ ];
              defined = filter (value: discharge value != [ ]) here;
              merged =
                if option.readOnly or false && defined != [ ] then
                  throw "The option `${where}' is read-only"
                else if given ++ defined == [ ] then
                  throw "The option `${where}' was accessed but has no value defined"
                else
                  mergeLeaf type where (given ++ defined);
            in
            if isA "option" option then
              (option.apply or (value: value)) merged
            else
              build (path ++ [ name ]) option here
          ) options;
      config = build (optional (place != "") place) declared (map configOf all');
    in
    {
      inherit config;
      options = declared;
    };

  # A text as a regular expression for itself.
  quoted =
    let
      special = [
        "."
        "["
        "]"
        "("
        ")"
        "*"
        "+"
        "?"
        "{"
        "}"
        "^"
        "$"
        "|"
        "\\"
      ];
    in
    builtins.replaceStrings special (map (sign: "\\${sign}") special);

  lib = {
    inherit
      all
      any
      attrNames
      concatLists
      concatMap
      concatMapStringsSep
      concatStringsSep
      elem
      elemAt
      escapeShellArg
      evalModules
      filter
      findFirst
      foldl'
      genAttrs
      genList
      mkIf
      mkMerge
      mkOverride
      optional
      types
      unique
      ;
    mkDefault = mkOverride 1000;
    mkForce = mkOverride 50;
    mkOption = option: option // { _type = "option"; };
    mkEnableOption = _: {
      _type = "option";
      type = types.bool;
      default = false;
    };
    literalMD = text: text;
    literalExpression = text: text;

    toList = value: if isList value then value else [ value ];
    last = list: elemAt list (length list - 1);
    sort = builtins.sort;
    optionals = condition: list: if condition then list else [ ];
    optionalAttrs = condition: set: if condition then set else { };
    optionalString = condition: text: if condition then text else "";
    concatMapStrings = make: list: concatStringsSep "" (map make list);
    escapeShellArgs = concatMapStringsSep " " escapeShellArg;
    mapAttrsToList = make: set: map (name: make name set.${name}) (attrNames set);
    hasPrefix = start: text: substring 0 (builtins.stringLength start) text == start;
    hasInfix = part: text: builtins.length (builtins.split (quoted part) text) > 1;
    removePrefix =
      start: text:
      if lib.hasPrefix start text then
        substring (builtins.stringLength start) (builtins.stringLength text) text
      else
        text;
    mapAttrs = builtins.mapAttrs;
    filterAttrs =
      keep: set: genAttrs (filter (name: keep name set.${name}) (attrNames set)) (name: set.${name});
    versionOlder = a: b: compareVersions a b < 0;
    versionAtLeast = a: b: compareVersions a b >= 0;
    getExe = package: "${package}/bin/${package.meta.mainProgram or package.pname or package.name}";
    getExe' = package: name: "${package}/bin/${name}";
    getLib = package: package.lib or package;
    getOutput = output: package: package.${output} or package.out or package;
    licenses = genAttrs [ "asl20" "gpl3Only" "mit" "unfree" ] (name: name);
    sourceTypes.binaryNativeCode = "binaryNativeCode";
  };
in
lib
