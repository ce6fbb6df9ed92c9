{ self }:
{
  name = "legacy-cuda-p4-edge";
  nodes.machine = {
    imports = [
      (import ../vm-host.nix {
        inherit self;
        template = "p4-edge";
      })
    ];
    vmHost.pciId = "0x1BB310DE";
  };
  testScript = ''
    def driver():
        machine.succeed("touch /run/stand-in/dev/nvidiactl /run/stand-in/dev/nvidia-uvm")

    driver()
    machine.wait_for_unit("llama-cpp.service")
    machine.wait_for_open_port(8080)
    machine.succeed("ss -tln | grep 0.0.0.0:8080")
    machine.wait_for_unit("legacy-cuda-thermal-guard.service")
  '';
}
