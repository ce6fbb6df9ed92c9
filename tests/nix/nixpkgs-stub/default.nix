# A nixpkgs whose packages are empty files, with the arguments they were made with.
{
  system,
  config ? { },
  overlays ? [ ],
}:
let
  lib = import ./lib.nix;
  release = import ./release.nix;

  # A derivation, and `recorded`: what it was made from.
  record =
    name: recorded:
    derivation {
      inherit name system;
      builder = "/bin/sh";
      args = [
        "-c"
        ": > $out"
      ];
    }
    // {
      inherit recorded;
      meta = recorded.meta or { };
    };
  plain = name: record name { } // { pname = name; };

  # A package that is overridden: the arguments of `override` stay visible.
  overridable =
    name: version: arguments:
    record name arguments
    // {
      inherit version;
      override = more: overridable name version (arguments // more);
      overridePythonAttrs =
        change:
        overridable name version (
          arguments
          // change {
            inherit version;
            patches = [ "/upstream.patch" ];
            postInstall = "upstream's\n";
          }
        );
    };

  attributeOf = pythonVersion: "python" + builtins.replaceStrings [ "." ] [ "" ] pythonVersion;

  callPackage =
    pkgs: file: given:
    let
      function = if builtins.isFunction file then file else import file;
    in
    function (builtins.intersectAttrs (builtins.functionArgs function) pkgs // given);

  base =
    final:
    {
      inherit lib config;
      callPackage = callPackage final;
      # For the tests: how this nixpkgs was asked for.
      imported = {
        inherit config release;
        overlays = builtins.length overlays;
      };

      _cuda = import ./cuda.nix;
      cudaPackages_12_6 = final._cuda.make final "12.6.3" "9.22.0";
      cudaPackages_12_8 = final._cuda.make final "12.8.1" "9.22.0";
      cudaPackages_12_9 = final._cuda.make final "12.9.1" "9.22.0";
      cudaPackages_12 = final.cudaPackages_12_9;
      cudaPackages = final.cudaPackages_12;
      # What nixpkgs does with a set that it has no more.
      cudaPackages_11_8 = throw "CUDA 11.8 has been removed";

      # `nix develop` takes derivations only whose builder is called bash, and builds them with a script
      # of its own, which asks for `outputs`.
      mkShell =
        arguments:
        derivation (
          {
            inherit (arguments) name;
            inherit system;
            builder = "/bin/bash";
            outputs = [ "out" ];
            packages = arguments.packages or [ ];
            shellHook = arguments.shellHook or "";
          }
          // arguments.env or { }
        )
        // {
          recorded = arguments;
        };
      # `nix develop` looks for its bash in here.
      bashInteractive = derivation {
        inherit system;
        name = "bash";
        builder = "/bin/sh";
        PATH = "/bin:/usr/bin";
        args = [
          "-c"
          "mkdir -p $out/bin && ln -s /bin/bash $out/bin/bash"
        ];
      };

      runCommand =
        name: attributes: script:
        record name { inherit attributes script; } // attributes.passthru or { };
      writeShellApplication = arguments: record arguments.name arguments;
      writeShellScriptBin = name: text: record name { inherit text; };
      writeShellScript = name: text: record name { inherit text; };
      writeScriptBin = name: text: record name { inherit text; };
      fetchurl = arguments: record "source" arguments;
      fetchFromGitHub = arguments: record "source" arguments;
      linkFarm = name: entries: record name { inherit entries; };
      symlinkJoin = arguments: record arguments.name arguments;
      runtimeShell = "/bin/sh";
      pkgsi686Linux = final // {
        stdenv.is32bit = true;
      };
      # Only NixOS's own modules ask for these, which come with the real lib: its types, as nixpkgs
      # puts them together.
      formats =
        let
          inherit (lib.types)
            attrsOf
            either
            nonEmptyListOf
            nullOr
            oneOf
            ;
          atom = nullOr (oneOf [
            lib.types.bool
            lib.types.int
            lib.types.float
            lib.types.str
          ]);
          format = type: _: {
            inherit type;
            generate = name: value: record name { inherit value; };
          };
        in
        {
          keyValue = format (attrsOf atom);
          yaml = format (lib.types.serializableValueWith { typeName = "YAML 1.1"; });
          ini = format (attrsOf (attrsOf (either atom (nonEmptyListOf atom))));
        };
      writeText = name: text: record name { inherit text; };
      nix = plain "nix" // {
        version = "2.31";
        out = plain "nix";
      };
      docker = plain "docker" // {
        version = "28.5.2";
      };
      bzip2 = plain "bzip2" // {
        bin = plain "bzip2-bin";
      };
      prometheus = plain "prometheus" // {
        cli = plain "prometheus-cli";
      };
      fetchPypi = arguments: record "${arguments.pname}-${arguments.version}.whl" arguments;
      dockerTools = {
        streamLayeredImage = arguments: record arguments.name arguments // arguments.passthru or { };
        caCertificates = plain "ca-certificates";
        fakeNss = plain "fake-nss";
      };
      addDriverRunpath.driverLink = "/run/opengl-driver";
      testers.runNixOSTest = arguments: record "vm-test" arguments;

      python3Packages = final.python313.pkgs;
      python311 = final.pythonOf "3.11";
      python312 = final.pythonOf "3.12";
      python313 = final.pythonOf "3.13";
      pythonOf =
        pythonVersion:
        plain "python${pythonVersion}"
        // {
          inherit pythonVersion;
          sitePackages = "lib/python${pythonVersion}/site-packages";
          pkgs =
            lib.genAttrs [
              "isal"
              "lz4"
              "nvidia-ml-py"
              "packaging"
              "prometheus-client"
              "pyelftools"
              "pyproject-hooks"
              "requests"
              "rich"
              "setuptools"
              "uv"
              "zstandard"
            ] plain
            // {
              python.sitePackages = "lib/python${pythonVersion}/site-packages";
              buildPythonApplication = arguments: record arguments.pname arguments;
              buildPythonPackage = arguments: record arguments.pname arguments;
              callPackage = callPackage (final // final.${attributeOf pythonVersion}.pkgs);
              ray = plain "ray";
              requiredPythonModules = packages: packages ++ [ (plain "click") ];
              torch = overridable "torch" release.torch { };
              triton-cuda = overridable "triton" release.triton { };
            };
        };
      llama-cpp = overridable "llama-cpp" "1" { };
      ollama = overridable "ollama" "1" { };

      stdenv = {
        is32bit = false;
        # a function is called with its own result, as in nixpkgs
        mkDerivation =
          given:
          let
            arguments = if builtins.isFunction given then given arguments else given;
            inputs = arguments.nativeBuildInputs or [ ] ++ arguments.buildInputs or [ ];
          in
          # there is no package without those that it is made with
          builtins.seq (toString inputs) (
            record (arguments.name or arguments.pname) arguments // arguments.passthru or { }
          );
        cc = plain "gcc-wrapper" // {
          cc = plain "gcc" // {
            lib = plain "gcc-lib";
          };
        };
      };
      nixfmt-tree = plain "nixfmt-tree";

      linuxPackages = final.linuxKernel.packages.${release.linux};
      linuxKernel.packages =
        let
          kernel = version: {
            kernel = {
              inherit version;
              kernelAtLeast = lib.versionAtLeast version;
            };
            nvidiaPackages = builtins.mapAttrs (
              name: version:
              plain "nvidia-${name}"
              // {
                inherit version;
                useProfiles = true;
                open = plain "nvidia-${name}-open";
              }
              // lib.genAttrs [
                "bin"
                "firmware"
                "lib32"
                "mod"
                "out"
                "persistenced"
                "settings"
              ] (part: plain "nvidia-${name}-${part}")
            ) release.drivers;
          };
        in
        {
          linux_6_12 = kernel "6.12.90";
          linux_6_18 = kernel "6.18.40";
          linux_7_0 = throw "linux 7.0 was removed because it reached its end of life";
          linux_7_1 = kernel "7.1.9";
        };
    }
    // lib.genAttrs [
      "autoAddDriverRunpath"
      "cmake"
      "coreutils"
      "curl"
      "egl-gbm"
      "egl-wayland"
      "egl-wayland2"
      "egl-x11"
      "findutils"
      "gawk"
      "glibc"
      "gnused"
      "grafana"
      "jq"
      "kbd"
      "kmod"
      "litellm"
      "lndir"
      "makeBinaryWrapper"
      "ninja"
      "nix-serve"
      "nvidia-container-toolkit"
      "nvidia-vaapi-driver"
      "open-webui"
      "parallel"
      "systemd"
      "uv"
      "zlib"
    ] plain;

  extend =
    before: overlay: final:
    let
      previous = before final;
    in
    previous // overlay final previous;
  layered = builtins.foldl' extend base overlays;
  pkgs = layered pkgs;
in
pkgs
