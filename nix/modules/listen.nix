# Where a service listens: its options, and its address for another one on this machine.
lib: {
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

  at = service: "http://${service.host}:${toString service.port}";
}
