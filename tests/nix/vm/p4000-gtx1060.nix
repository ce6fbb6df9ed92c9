{ self }:
{
  name = "legacy-cuda-p4000-gtx1060";
  nodes.machine = {
    imports = [
      (import ../vm-host.nix {
        inherit self;
        template = "p4000-gtx1060";
      })
    ];
    vmHost.pciId = "0x1BB110DE";
  };
  testScript = ''
    def driver():
        machine.succeed("touch /run/stand-in/dev/nvidiactl /run/stand-in/dev/nvidia-uvm")

    driver()
    machine.wait_for_unit("ollama.service")
    machine.succeed("systemctl show -p Environment ollama | grep OLLAMA_SCHED_SPREAD=1")
    machine.succeed("stat -c %U /srv/models | grep ollama")
    machine.wait_for_unit("litellm.service")
    machine.wait_for_open_port(4000)
  '';
}
