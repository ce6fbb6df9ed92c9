# What every unit of ours forbids itself. A unit adds what it needs.
{
  # Above what upstream's units of the engines have already.
  engine = {
    CapabilityBoundingSet = [ "" ];
    DevicePolicy = "closed";
    DeviceAllow = [
      "char-nvidiactl"
      "char-nvidia-frontend"
      "char-nvidia-uvm"
    ];
    IPAddressAllow = "localhost";
    IPAddressDeny = "any";
    NoNewPrivileges = true;
    PrivateMounts = true;
    ProtectSystem = "strict";
    RestrictSUIDSGID = true;
    UMask = "0077";
  };

  # For a program that only talks to the driver.
  driver = {
    CapabilityBoundingSet = [ "" ];
    DevicePolicy = "closed";
    DeviceAllow = [
      "char-nvidiactl rw"
      "char-nvidia-frontend rw"
    ];
    IPAddressDeny = "any";
    LockPersonality = true;
    MemoryDenyWriteExecute = true;
    NoNewPrivileges = true;
    PrivateMounts = true;
    PrivateNetwork = true;
    PrivateTmp = true;
    ProtectClock = true;
    ProtectControlGroups = true;
    ProtectHome = true;
    ProtectHostname = true;
    ProtectKernelLogs = true;
    ProtectKernelModules = true;
    ProtectKernelTunables = true;
    ProtectProc = "invisible";
    ProtectSystem = "strict";
    RemoveIPC = true;
    RestrictAddressFamilies = "AF_UNIX";
    RestrictNamespaces = true;
    RestrictRealtime = true;
    RestrictSUIDSGID = true;
    SystemCallArchitectures = "native";
    SystemCallFilter = [
      "@system-service"
      "~@privileged @resources"
    ];
    UMask = "0077";
  };
}
