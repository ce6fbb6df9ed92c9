{ self }:
{
  name = "legacy-cuda-p40";
  nodes.machine = {
    imports = [
      (import ../vm-host.nix {
        inherit self;
        template = "p40";
      })
    ];
    vmHost.pciId = "0x1B3810DE";
    hardware.legacy-cuda.idlePower.enable = true;
  };
  testScript = ''
    def driver():
        machine.succeed("touch /run/stand-in/dev/nvidiactl /run/stand-in/dev/nvidia-uvm")

    with subtest("nothing starts before the driver is there"):
        machine.wait_for_unit("sysinit.target")
        machine.succeed("systemctl show -p ActiveState legacy-cuda-ready | grep activating")
        machine.fail("systemctl is-active ollama.service")

    with subtest("then Ollama answers on loopback and nowhere else"):
        driver()
        machine.wait_for_unit("ollama.service")
        machine.wait_for_open_port(11434)
        machine.succeed("ss -tln | grep 127.0.0.1:11434")

    with subtest("the power limit is set, and lowered while the card is hot"):
        machine.wait_for_unit("legacy-cuda-power-limits.service")
        machine.succeed("grep -- '--id=0 --power-limit=180' /run/stand-in/calls")
        machine.succeed("echo 90 > /run/stand-in/degrees")
        machine.wait_until_succeeds("grep -- '--power-limit=125.00' /run/stand-in/calls")
        machine.succeed("echo 60 > /run/stand-in/degrees")
        machine.wait_until_succeeds("grep -- '--power-limit=250.00' /run/stand-in/calls")

    with subtest("the daemon for idle cards is started for the card"):
        machine.wait_for_unit("legacy-cuda-idle-power.service")

    with subtest("the exporter says that no driver answers, and Prometheus reads it"):
        machine.wait_for_open_port(9835)
        machine.succeed("curl --fail 127.0.0.1:9835/metrics | grep 'nvidia_gpu_monitor_nvml_up{.*} 0'")
        machine.wait_for_open_port(9090)
        machine.wait_until_succeeds("curl --fail 127.0.0.1:9090/api/v1/rules | grep NvidiaGpuHot")

    with subtest("Grafana has the dashboard"):
        machine.wait_for_open_port(3001)
        machine.wait_until_succeeds("curl --fail admin:admin@127.0.0.1:3001/api/dashboards/uid/legacy-cuda-gpus")
  '';
}
