# Where a service listens: its options, and its address for another one on this machine.
lib: rec {
  options = port: {
    host = lib.mkOption {
      type = lib.types.str;
      default = "127.0.0.1";
      description = "The address to listen on.";
    };

    port = lib.mkOption {
      type = lib.types.port;
      default = port;
      description = "The port to listen on.";
    };
  };

  # "[::1]:8000": an IPv6 address in brackets
  address =
    service:
    "${
      if lib.hasInfix ":" service.host then "[${service.host}]" else service.host
    }:${toString service.port}";

  at = service: "http://${address service}";

  # Nobody else reaches it.
  isLoopback =
    service:
    lib.elem service.host [
      "127.0.0.1"
      "::1"
      "localhost"
    ];
}
