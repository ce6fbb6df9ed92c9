# A compose file for an image: loopback only, one volume for models, all cards of the machine.
{
  lib,
  formats,
  # the engine's name, the card's, and the ports of the image
  engine,
  gpu,
  ports,
}:

let
  volumes = {
    home = { };
  }
  // lib.optionalAttrs (ports != [ ]) { models = { }; };
in
(formats.yaml { }).generate "compose.yaml" {
  name = "legacy-cuda-${gpu}";
  services.${engine} = {
    image = "legacy-cuda-${gpu}-${engine}:latest";
    # Without a port it is a Python to type into, not a server.
    restart = if ports == [ ] then "no" else "unless-stopped";
    ports = map (port: "127.0.0.1:${toString port}:${toString port}") ports;
    volumes = lib.mapAttrsToList (name: _: "${name}:/${name}") volumes;
    cap_drop = [ "ALL" ];
    security_opt = [ "no-new-privileges:true" ];
    deploy.resources.reservations.devices = [
      {
        driver = "nvidia";
        count = "all";
        capabilities = [ "gpu" ];
      }
    ];
  }
  // lib.optionalAttrs (ports == [ ]) {
    stdin_open = true;
    tty = true;
  };
  inherit volumes;
}
