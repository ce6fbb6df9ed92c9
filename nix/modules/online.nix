# What a unit of ours forbids itself that has nothing to do with the cards and is on the network.
builtins.removeAttrs (import ./hardening.nix) [ "DeviceAllow" ]
// {
  PrivateDevices = true;
  PrivateNetwork = false;
  IPAddressDeny = [ ];
  RestrictAddressFamilies = [
    "AF_INET"
    "AF_INET6"
    "AF_UNIX"
  ];
  SystemCallFilter = [
    "@system-service"
    "~@privileged"
  ];
}
