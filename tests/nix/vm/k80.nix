{ self }:
{
  name = "legacy-cuda-k80";
  nodes.machine = {
    imports = [
      (import ../vm-host.nix {
        inherit self;
        template = "k80";
      })
    ];
    vmHost.pciId = "0x102D10DE";
  };
  testScript = ''
    def driver():
        machine.succeed("touch /run/stand-in/dev/nvidiactl /run/stand-in/dev/nvidia-uvm")

    driver()
    machine.wait_for_unit("legacy-cuda-ready.service")
    machine.succeed("systemctl cat llama-cpp.service | grep -E 'flash-attn[^a-z]{1,3}off'")
    machine.fail("systemctl cat legacy-cuda-power-limits.service")
    machine.fail("systemctl cat legacy-cuda-thermal-guard.service")
  '';
}
