# legacy-cuda's exporter, and on top of NixOS's own modules Prometheus and Grafana, with the rules and
# the dashboard that the exporter itself brings.
_:
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib)
    mkDefault
    mkIf
    mkOption
    types
    ;

  listen = import ./listen.nix lib;
  cfg = config.services.legacy-cuda.monitoring;
  inherit (config.hardware.legacy-cuda) gpus powerLimits;
  isLoopback = listen.isLoopback cfg;
  address = listen.address cfg;

  # What the program prints, as a file.
  printed =
    name: option:
    pkgs.runCommand name { } ''
      export HOME="$TMPDIR"
      ${lib.getExe cfg.package} monitor ${option} > "$out"
    '';
  dashboards = pkgs.linkFarm "legacy-cuda-dashboards" [
    {
      name = "gpus.json";
      path = printed "gpus.json" "--dashboard";
    }
  ];

  # Grafana has no key of its own any more: one that only this machine knows, made when it is missing.
  secretKey = "${config.services.grafana.dataDir}/legacy-cuda-secret-key";
in
{
  options.services.legacy-cuda.monitoring = listen.options 9835 // {
    enable = lib.mkEnableOption "metrics of the cards for Prometheus (legacy-cuda monitor)";

    package = mkOption {
      type = types.package;
      default = pkgs.callPackage ../../pkgs/legacy-cuda/package.nix { };
      defaultText = lib.literalMD "legacy-cuda";
      description = "The legacy-cuda to run.";
    };

    prometheus.enable = lib.mkEnableOption "Prometheus on this machine, with the metrics and their alert rules";

    grafana = {
      enable = lib.mkEnableOption "Grafana on this machine, with the dashboard; Prometheus comes with it";

      inherit (listen.options 3001) host port;
    };
  };

  config = mkIf cfg.enable {
    assertions = [
      {
        assertion = gpus != [ ];
        message = "services.legacy-cuda.monitoring: hardware.legacy-cuda.gpus is empty";
      }
    ];

    # NixOS's own default
    warnings =
      lib.optional
        (
          cfg.grafana.enable
          && !listen.isLoopback cfg.grafana
          && (config.services.grafana.settings.security.admin_password or "admin") == "admin"
        )
        "services.legacy-cuda.monitoring.grafana: reachable from other machines with the account admin and the password admin; set services.grafana.settings.security.admin_password (\"$__file{/path/to/a/file}\")";

    services = {
      legacy-cuda.monitoring.prometheus.enable = mkIf cfg.grafana.enable true;

      prometheus = mkIf cfg.prometheus.enable {
        enable = true;
        listenAddress = mkDefault "127.0.0.1";
        scrapeConfigs = [
          {
            job_name = "legacy-cuda";
            static_configs = [ { targets = [ address ]; } ];
          }
        ];
        ruleFiles = [ (printed "legacy-cuda-alerts.yml" "--alert-rules") ];
      };

      grafana = mkIf cfg.grafana.enable {
        enable = true;
        settings = {
          server = {
            http_addr = cfg.grafana.host;
            http_port = cfg.grafana.port;
          };
          analytics.reporting_enabled = mkDefault false;
          security.secret_key = mkDefault "$__file{${secretKey}}";
        };
        provision = {
          enable = true;
          datasources.settings.datasources = [
            {
              name = "Prometheus";
              type = "prometheus";
              url = "http://127.0.0.1:${toString config.services.prometheus.port}";
            }
          ];
          dashboards.settings.providers = [
            {
              name = "legacy-cuda";
              options.path = dashboards;
            }
          ];
        };
      };
    };

    systemd.services = {
      legacy-cuda-monitor = {
        description = "Metrics of NVIDIA cards for Prometheus";
        wantedBy = [ "multi-user.target" ];
        # Not the driver: that it does not answer is what this is there to say. It may come later, so its
        # devices are allowed by their number.
        after = [ "network.target" ];
        # where NixOS has the driver's libraries
        environment.LD_LIBRARY_PATH = "${pkgs.addDriverRunpath.driverLink}/lib";
        serviceConfig = import ./hardening.nix // {
          DynamicUser = true;
          Restart = "always";
          RestartSec = 10;
          ExecStart = lib.concatStringsSep " " (
            [
              (lib.getExe cfg.package)
              "monitor"
              "--listen"
              address
            ]
            ++ lib.mapAttrsToList (card: watts: "--power-cap ${card}=${toString watts}") powerLimits
          );
          PrivateNetwork = false;
          RestrictAddressFamilies = [
            "AF_INET"
            "AF_INET6"
            "AF_UNIX"
          ];
          IPAddressDeny = if isLoopback then "any" else [ ];
          IPAddressAllow = lib.optional isLoopback "localhost";
          # the names of the processes that use the cards
          ProtectProc = "default";
        };
      };

      grafana = mkIf cfg.grafana.enable {
        preStart = ''
          if [ ! -s ${secretKey} ]; then
            (umask 077 && head --bytes=32 /dev/urandom | base64 > ${secretKey})
          fi
        '';
      };
    };
  };
}
