"""The NixOS modules: every card, the templates' machines, the units in systemd's eyes.

NixOS's part is a stub: the options it declares, without what it makes of them. So the units of
engines are seen here as far as our modules write them; docs/nix.md says what was evaluated with
NixOS's own files.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from legacy_cuda import catalog
from legacy_cuda.catalog import Gpu
from legacy_cuda.cli import main
from legacy_cuda.monitor import PORT
from legacy_cuda.resolve import Refusal, drivers_for, resolve
from tests.nix import units
from tests.nix.hosts import TEMPLATES, Host, evaluate_templates
from tests.nix.nixrun import ROOT, Outputs, as_nix, without_store

MODULES = ROOT / "nix" / "modules"
# engines of which there is a service, and its unit
SERVED = {"ollama": "ollama", "llama-cpp": "llama-cpp", "vllm": "legacy-cuda-vllm"}
ENGINES = [engine.name for engine in catalog.engines() if engine.name != "torch"]

HELPERS = f"""
  host = import {as_nix(Path(__file__).parent / "host.nix")};
  machine = module: host (flake.nixpkgs.lib.nixosSystem {{
    modules = [ flake.nixosModules.default {{ nixpkgs.config.allowUnfree = true; }} module ];
  }});
  freeMachine = module: host (flake.nixpkgs.lib.nixosSystem {{ modules = [ module ]; }});
"""


def in_words(refusal: Refusal) -> str:
    names = ", ".join(dict.fromkeys(gpu.name for gpu in refusal.gpus))
    because = "; ".join(refusal.because)
    return f"{refusal.engine.name} on {names} is refused [{refusal.rule}]: {because}"


def flags_of(llama_cpp: dict[str, Any]) -> dict[str, str]:
    """What llama-server is told, whichever options this NixOS has for it."""
    if "settings" in llama_cpp:
        return {name: str(value) for name, value in llama_cpp["settings"].items()}
    flags = llama_cpp["extraFlags"]
    found = {
        name.removeprefix("--"): value for name, value in zip(flags[::2], flags[1::2], strict=True)
    }
    for name, option in {"host": "host", "model": "model", "models-dir": "modelsDir"}.items():
        if llama_cpp[option] is not None:
            found[name] = llama_cpp[option]
    return found


def refusal_of(gpus: list[Gpu], engine: str) -> Refusal | None:
    found = resolve(gpus, catalog.find_engine(engine))
    return found if isinstance(found, Refusal) else None


@pytest.fixture(scope="session")
def hosts(outputs: Outputs) -> dict[str, Host]:
    """The machine of each template, evaluated as its flake does."""
    return evaluate_templates(outputs, TEMPLATES)


def test_templates_evaluate(hosts: dict[str, Host], outputs: Outputs) -> None:
    assert set(hosts) == set(TEMPLATES)
    assert set(outputs.evaluate("builtins.attrNames flake.templates")) == set(TEMPLATES)
    for host in hosts.values():
        assert host["failed"] == [] and host["warnings"] == []


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_host_writes_nothing_into_the_clone(hosts: dict[str, Host], name: str) -> None:
    """Else the clone is another one after the first switch, and its hash does not fit."""
    flake = (ROOT / "nix" / "templates" / name / "flake.nix").read_text()
    (clone,) = re.findall(r'legacy-cuda\.url = "git\+file://([^"]+)"', flake)
    docs = (ROOT / "docs" / "nix.md").read_text()
    assert f'inputs.legacy-cuda.url = "git+file://{clone}"' in docs
    assert ("legacy-cuda-notes" in hosts[name]["etc"]) is bool(hosts[name]["notes"])
    written = [f"/etc/{file}" for file in hosts[name]["etc"]]
    written += [rule.split()[1] for rule in hosts[name]["tmpfiles"]]
    assert not [path for path in written if f"{path}/".startswith(f"{clone}/")]


def test_hosts_of_the_virtual_machines(outputs: Outputs) -> None:
    """One test for each template; its machine has the template's units, no driver, and nothing in
    its units that is made with CUDA: a nixpkgs without unfree packages, as here, refuses that."""
    found = outputs.evaluate(
        f"""
        let
          {HELPERS}
          inherit (flake) checks;
          machines = builtins.mapAttrs (_: check: check.recorded) checks.x86_64-linux;
        in
        builtins.mapAttrs (_: test: let one = freeMachine test.nodes.machine; in {{
          inherit (test) name;
          inherit (one) failed nvidia containers units;
          web-ui = one.services.open-webui;
        }}) machines
        """
    )
    assert set(found) == {f"vm-{name}" for name in TEMPLATES}
    for check, one in found.items():
        template = check.removeprefix("vm-")
        assert one["name"] == f"legacy-cuda-{template}"
        assert one["failed"] == [] and one["nvidia"] is None
        # the one wants a driver, the other is unfree
        assert one["containers"] is False and one["web-ui"] is None
        assert "nvidia-container-toolkit-cdi-generator" not in one["units"]
        guarded = "legacy-cuda-thermal-guard" in one["units"]
        assert guarded is (template in ("p40", "p4-edge"))
        assert ("legacy-cuda-idle-power" in one["units"]) is (template == "p40")


def test_a_package_made_with_cuda_is_refused_without_unfree_ones(outputs: Outputs) -> None:
    """That the test above can fail."""
    said = outputs.fails(
        f"""
        let {HELPERS} in (freeMachine {{
          imports = [ flake.nixosModules.hardware ];
          hardware.legacy-cuda = {{ gpus = [ "p40" ]; idlePower.enable = true; }};
        }}).units
        """
    )
    assert "Package cuda_nvcc has an unfree license" in said


def test_a_host_without_a_display_keeps_its_ssh(hosts: dict[str, Host]) -> None:
    assert [name for name, host in hosts.items() if host["ssh"]] == ["k80", "p4-edge", "p40"]


def test_the_p40_host(hosts: dict[str, Host]) -> None:
    host = hosts["p40"]
    assert host["nvidia"] == {
        "open": False,
        "version": "580.173.02",
        "nvidiaPersistenced": True,
        "nvidiaSettings": False,
        "powerManagement": True,
        "drivers": ["nvidia"],
        "graphics": True,
        # not in /tmp, which may be memory
        "temporary": "/var/tmp",
    }
    assert host["containers"] is False
    assert {"nouveau", "nova_core", "nova_drm"} <= set(host["blacklisted"])
    assert host["notes-file"] == "\n".join(host["notes"]) + "\n"
    assert len(host["notes"]) == 2  # passive, ECC
    ollama = host["services"]["ollama"]
    assert (ollama["host"], ollama["port"]) == ("127.0.0.1", 11434)
    assert ollama["loadModels"] == ["llama3.2:3b"]
    assert "OLLAMA_SCHED_SPREAD" not in ollama["environmentVariables"]
    web = host["services"]["open-webui"]
    assert (web["host"], web["port"]) == ("127.0.0.1", 3000)
    assert web["environment"]["OLLAMA_BASE_URL"] == "http://127.0.0.1:11434"
    assert web["environment"]["ENABLE_OPENAI_API"] == "False"
    limits = without_store(host["units"]["legacy-cuda-power-limits"]["serviceConfig"])
    (gpu,) = [gpu for gpu in catalog.gpus() if gpu.name == "p40"]
    assert limits["ExecStart"] == " ".join(
        [
            "legacy-cuda-power-limits/bin/legacy-cuda-power-limits",
            "nvidia-legacy_580-bin/bin/nvidia-smi",
        ]
        + [f"{pci}=180" for pci in gpu.pci_ids]
    )
    guard = without_store(host["units"]["legacy-cuda-thermal-guard"]["serviceConfig"])
    assert guard["ExecStart"].split()[2:] == [f"{pci}=85,180" for pci in gpu.pci_ids]
    # nobody has built its package yet
    assert "legacy-cuda-idle-power" not in host["units"]
    monitor = without_store(host["units"]["legacy-cuda-monitor"])
    assert monitor["serviceConfig"]["ExecStart"] == (
        f"legacy-cuda/bin/legacy-cuda monitor --listen 127.0.0.1:{PORT} --power-cap p40=180"
    )


def test_the_workstation_with_two_cards(hosts: dict[str, Host]) -> None:
    """What was set by hand on such a machine: device order, spread, keep-alive, resume."""
    host = hosts["p4000-gtx1060"]
    ollama = host["services"]["ollama"]
    assert ollama["environmentVariables"] == {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "OLLAMA_FLASH_ATTENTION": "1",
        "OLLAMA_KEEP_ALIVE": "1h",
        "OLLAMA_SCHED_SPREAD": "1",
    }
    folder = ollama["modelsDir"] if "modelsDir" in ollama else ollama["models"]
    assert (ollama["user"], folder) == ("ollama", "/srv/models")
    assert "d /srv/models 0750 ollama ollama -" in host["tmpfiles"]
    resume = without_store(host["units"]["legacy-cuda-resume"])
    assert resume["serviceConfig"]["ExecStart"].endswith("legacy-cuda-resume ollama.service")
    assert "suspend.target" in resume["wantedBy"] and "suspend.target" in resume["after"]
    (model,) = host["services"]["litellm"]["settings"]["model_list"]
    assert model["litellm_params"] == {
        "model": "ollama_chat/llama3.1:8b",
        "api_base": "http://127.0.0.1:11434",
    }
    web = host["services"]["open-webui"]["environment"]
    assert web["OPENAI_API_BASE_URL"] == "http://127.0.0.1:4000/v1"
    ports = [
        service["port"]
        for name, service in host["services"].items()
        if service and "port" in service
    ]
    assert len(ports) == len(set(ports)) == 3


def test_the_k80_box(hosts: dict[str, Host]) -> None:
    host = hosts["k80"]
    assert host["nvidia"]["version"] == "470.256.02"
    assert host["nvidia"]["open"] is False
    assert host["nvidia"]["nvidiaPersistenced"] is False
    settings = flags_of(host["services"]["llama-cpp"])
    assert settings["flash-attn"] == "off" and settings["host"] == "127.0.0.1"
    assert settings["model"] == "/srv/models/model.gguf" and settings["ctx-size"] == "4096"
    assert not {"legacy-cuda-power-limits", "legacy-cuda-thermal-guard"} & set(host["units"])
    assert any("2 dies" in note for note in host["notes"])


def test_the_edge_node(hosts: dict[str, Host]) -> None:
    host = hosts["p4-edge"]
    assert host["containers"] is True
    assert flags_of(host["services"]["llama-cpp"])["host"] == "0.0.0.0"
    assert flags_of(host["services"]["llama-cpp"])["models-dir"] == "/srv/models"
    # without the driver's files there CUDA does not start
    assert host["units"]["llama-cpp"]["serviceConfig"]["ProcSubset"] == "all"
    assert host["firewall"] == [8080]


# Services that no template has --------------------------------------------------------------------


@pytest.fixture(scope="session")
def more_hosts(outputs: Outputs) -> dict[str, Host]:
    """vLLM by itself, in a cluster's head and in its worker; a machine that builds for others, and
    one that others build for; one whose card is put into a state that saves power."""
    found: dict[str, Host] = outputs.evaluate(
        f"""
        let {HELPERS} in builtins.mapAttrs (_: machine) {{
          vllm = {{
            hardware.legacy-cuda.gpus = [ "p40" "p40" ];
            services.legacy-cuda = {{
              vllm = {{
                enable = true;
                model = "Qwen/Qwen3-8B";
                environmentFile = "/run/keys/vllm";
                environment.NCCL_P2P_DISABLE = "1";
                settings = {{
                  max-model-len = 8192;
                  chat-template = "100% $HOME 'x'";
                  enable-auto-tool-choice = true;
                  enforce-eager = false;
                }};
              }};
              gateway.enable = true;
              web-ui.enable = true;
            }};
          }};
          head = {{
            hardware.legacy-cuda.gpus = [ "p100" ];
            services.legacy-cuda.vllm = {{
              enable = true;
              model = "/srv/models/m";
              settings.pipeline-parallel-size = 2;
              cluster = {{ role = "head"; address = "10.0.0.1"; }};
            }};
          }};
          worker = {{
            hardware.legacy-cuda.gpus = [ "p100" ];
            services.legacy-cuda.vllm = {{
              enable = true;
              cluster = {{ role = "worker"; address = "10.0.0.2"; head = "10.0.0.1"; }};
            }};
          }};
          builder = {{
            services.legacy-cuda.builds.serve = {{
              enable = true;
              host = "10.0.0.1";
              secretKeyFile = "/run/keys/builds";
              gpus = [ "p40" "k80" ];
            }};
          }};
          idle.hardware.legacy-cuda = {{ gpus = [ "p40" ]; idlePower.enable = true; }};
          built-for = {{
            services.legacy-cuda.builds = {{
              machines = [
                {{ hostName = "10.0.0.1"; sshUser = "builds"; publicHostKey = "a2V5"; }}
                {{ hostName = "10.0.0.2"; }}
              ];
              caches."http://example.org:5000" = "builds-1:a2V5";
            }};
          }};
        }}
        """
    )
    for name, host in found.items():
        assert host["failed"] == [] and host["warnings"] == [], name
    return found


def words_of(unit: dict[str, Any]) -> list[str]:
    """The command as systemd splits it: as a shell does, with `%` and `$` written twice."""
    text = without_store(unit["serviceConfig"]["ExecStart"])
    return [word.replace("%%", "%").replace("$$", "$") for word in shlex.split(text)]


def test_vllm(more_hosts: dict[str, Host]) -> None:
    host = more_hosts["vllm"]
    unit = host["units"]["legacy-cuda-vllm"]
    program, serve, model, *flags = words_of(unit)
    assert program == "legacy-cuda-wheels-vllm-cuda-12/bin/vllm"
    assert (serve, model) == ("serve", "Qwen/Qwen3-8B")
    assert flags == [
        *["--chat-template", "100% $HOME 'x'"],
        "--disable-custom-all-reduce",
        "--enable-auto-tool-choice",
        *["--host", "127.0.0.1"],
        *["--max-model-len", "8192"],
        *["--port", "8000"],
        *["--tensor-parallel-size", "2"],
    ]
    assert unit["environment"]["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert unit["environment"]["NCCL_P2P_DISABLE"] == "1"
    assert "RAY_ADDRESS" not in unit["environment"]
    assert unit["serviceConfig"]["EnvironmentFile"] == ["/run/keys/vllm"]
    assert unit["serviceConfig"]["User"] in host["users"]["users"]
    assert "legacy-cuda-ray" not in host["units"]
    resume = host["units"]["legacy-cuda-resume"]["serviceConfig"]["ExecStart"]
    assert resume.endswith("legacy-cuda-resume legacy-cuda-vllm.service")
    (offered,) = host["services"]["litellm"]["settings"]["model_list"]
    assert offered["model_name"] == "Qwen/Qwen3-8B"
    assert offered["litellm_params"]["api_base"] == "http://127.0.0.1:8000/v1"


@pytest.mark.parametrize(
    ("settings", "name"),
    [("", "q/m"), ('served-model-name = "m";', "m"), ('served-model-name = [ "a" "b" ];', "b")],
)
def test_the_gateway_asks_vllm_for_the_name_that_it_serves(
    outputs: Outputs, settings: str, name: str
) -> None:
    host = outputs.evaluate(
        f"""
        let {HELPERS} in machine {{
          hardware.legacy-cuda.gpus = [ "p40" ];
          services.legacy-cuda = {{
            gateway.enable = true;
            vllm = {{ enable = true; model = "q/m"; host = "::1"; settings = {{ {settings} }}; }};
          }};
        }}
        """
    )
    (offered,) = host["services"]["litellm"]["settings"]["model_list"]
    assert offered["model_name"] == name
    assert offered["litellm_params"]["model"] == f"openai/{name}"
    assert offered["litellm_params"]["api_base"] == "http://[::1]:8000/v1"
    # of a flag that is there twice, argparse takes the last
    flags = words_of(host["units"]["legacy-cuda-vllm"])
    names = [after for flag, after in itertools.pairwise(flags) if flag == "--served-model-name"]
    assert (names or ["q/m"])[-1] == name


def test_the_web_ui_asks_no_worker(outputs: Outputs) -> None:
    """A worker of a cluster answers nobody; what else is there is asked."""
    host = outputs.evaluate(
        f"""
        let {HELPERS} in machine {{
          hardware.legacy-cuda.gpus = [ "p40" ];
          services.legacy-cuda = {{
            web-ui.enable = true;
            llama-cpp = {{ enable = true; host = "::1"; modelsDir = "/srv/models"; }};
            vllm = {{
              enable = true;
              cluster = {{ role = "worker"; address = "10.0.0.2"; head = "10.0.0.1"; }};
            }};
          }};
        }}
        """
    )
    assert host["failed"] == []
    asked = host["services"]["open-webui"]["environment"]["OPENAI_API_BASE_URL"]
    assert asked == "http://[::1]:8080/v1"


def test_vllm_on_two_machines(more_hosts: dict[str, Host]) -> None:
    """The head serves through Ray, the worker serves nothing; both start after the driver."""
    head, worker = more_hosts["head"]["units"], more_hosts["worker"]["units"]
    serve = words_of(head["legacy-cuda-vllm"])
    assert serve[serve.index("--distributed-executor-backend") + 1] == "ray"
    assert "--enforce-eager" in serve and "--tensor-parallel-size" not in serve
    assert head["legacy-cuda-vllm"]["environment"]["RAY_ADDRESS"] == "10.0.0.1:6379"
    assert "legacy-cuda-ray.service" in head["legacy-cuda-vllm"]["requires"]
    assert head["legacy-cuda-vllm"]["unitConfig"] == {"JoinsNamespaceOf": "legacy-cuda-ray.service"}
    start = ["legacy-cuda-wheels-vllm-cuda-12/bin/python", "-m", "ray.scripts.scripts", "start"]
    assert words_of(head["legacy-cuda-ray"]) == [
        *start,
        *["--block", "--disable-usage-stats", "--head", "--include-dashboard", "false"],
        *["--node-ip-address", "10.0.0.1", "--port", "6379"],
    ]
    assert "legacy-cuda-vllm" not in worker
    assert words_of(worker["legacy-cuda-ray"]) == [
        *start,
        *["--address", "10.0.0.1:6379", "--block", "--disable-usage-stats"],
        *["--node-ip-address", "10.0.0.2"],
    ]
    assert worker["legacy-cuda-ray"]["environment"]["VLLM_HOST_IP"] == "10.0.0.2"
    for unit in (head["legacy-cuda-ray"], worker["legacy-cuda-ray"]):
        assert "legacy-cuda-ready.service" in unit["requires"]


@pytest.mark.parametrize(
    ("template", "printed"), [("dashboards", "--dashboard"), ("rules", "--alert-rules")]
)
def test_rules_and_dashboard_are_what_the_exporter_prints(
    outputs: Outputs,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    template: str,
    printed: str,
) -> None:
    """The commands that make the files, run with this legacy-cuda."""
    script = outputs.evaluate(
        """
        let
          inherit (flake.nixpkgs.lib.nixosSystem {
            modules = [
              flake.nixosModules.default
              (nix + "/templates/p40/configuration.nix")
            ];
          }) config;
          folder = (builtins.head
            config.services.grafana.provision.dashboards.settings.providers).options.path;
        in
        {
          rules = (builtins.head config.services.prometheus.ruleFiles).recorded.script;
          dashboards = (builtins.head folder.recorded.entries).path.recorded.script;
        }
        """
    )[template]
    program(tmp_path, "legacy-cuda", f'exec {sys.executable} -m legacy_cuda "$@"\n')
    text = re.sub(r"/\S+/bin/legacy-cuda", str(tmp_path / "legacy-cuda"), script)
    subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        env={**os.environ, "TMPDIR": str(tmp_path), "out": str(tmp_path / "out")},
        check=True,
        timeout=60,
    )
    assert main(["monitor", printed]) == 0
    assert (tmp_path / "out").read_text() == capsys.readouterr().out


def test_monitoring(hosts: dict[str, Host]) -> None:
    """All of it on loopback, with no port twice, and no secret in the store."""
    services = hosts["p40"]["services"]
    prometheus, grafana = services["prometheus"], services["grafana"]
    assert prometheus["listenAddress"] == "127.0.0.1"
    (job,) = prometheus["scrapeConfigs"]
    assert job["job_name"] == "legacy-cuda"
    assert [target["targets"] for target in job["static_configs"]] == [[f"127.0.0.1:{PORT}"]]
    server = grafana["settings"]["server"]
    assert server["http_addr"] == "127.0.0.1"
    (source,) = grafana["provision"]["datasources"]["settings"]["datasources"]
    assert source["url"] == f"http://127.0.0.1:{prometheus['port']}"
    ports = [prometheus["port"], server["http_port"], PORT, services["open-webui"]["port"]]
    assert len(set(ports)) == len(ports)
    key = "/var/lib/grafana/legacy-cuda-secret-key"
    assert grafana["settings"]["security"]["secret_key"] == f"$__file{{{key}}}"
    assert key in hosts["p40"]["units"]["grafana"]["preStart"]
    assert services["nix-serve"] is None and hosts["k80"]["services"]["prometheus"] is None


@pytest.mark.parametrize(
    ("host", "password", "warned"),
    [
        ("127.0.0.1", None, False),
        ("::1", None, False),
        ("0.0.0.0", None, True),
        ("10.0.0.1", "admin", True),
        ("10.0.0.1", "$__file{/run/keys/grafana}", False),
    ],
)
def test_grafana_for_others_with_its_first_password_is_warned_of(
    outputs: Outputs, host: str, password: str | None, warned: bool
) -> None:
    chosen = "" if password is None else f"admin_password = {json.dumps(password)};"
    warnings = outputs.evaluate(
        f"""
        let {HELPERS} in (machine {{
          hardware.legacy-cuda.gpus = [ "p40" ];
          services.legacy-cuda.monitoring = {{
            enable = true;
            grafana = {{ enable = true; host = "{host}"; }};
          }};
          services.grafana.settings.security = {{ {chosen} }};
        }}).warnings
        """
    )
    assert len(warnings) == (1 if warned else 0)
    assert not warned or "security.admin_password" in warnings[0]


def test_grafana_gets_a_key_of_its_own(tmp_path: Path, hosts: dict[str, Host]) -> None:
    """Made once, for nobody else to read."""
    key = tmp_path / "key"
    script = hosts["p40"]["units"]["grafana"]["preStart"]
    # ours alone: NixOS's part is about Grafana's own folder
    script = script[script.index("if [ ! -s") :].replace(
        "/var/lib/grafana/legacy-cuda-secret-key", str(key)
    )
    made = []
    for _ in range(2):
        subprocess.run(["bash", "-euo", "pipefail", "-c", script], check=True, timeout=20)
        made.append(key.read_text())
    assert made[0] == made[1] and len(made[0].strip()) == 44
    assert key.stat().st_mode & 0o777 == 0o600


def test_an_exporter_for_others_is_reached_by_them(outputs: Outputs) -> None:
    host = outputs.evaluate(
        f"""
        let {HELPERS} in machine {{
          hardware.legacy-cuda.gpus = [ "v100" ];
          services.legacy-cuda.monitoring = {{ enable = true; host = "::"; port = 9000; }};
        }}
        """
    )
    unit = host["units"]["legacy-cuda-monitor"]["serviceConfig"]
    assert unit["ExecStart"].endswith("monitor --listen [::]:9000")
    assert unit["IPAddressDeny"] == [] == unit["IPAddressAllow"]
    assert host["services"]["prometheus"] is None and host["services"]["grafana"] is None


def test_builds(more_hosts: dict[str, Host]) -> None:
    """What is served for a card is what the flake has for it, and nobody needs the card."""
    builder, other = more_hosts["builder"], more_hosts["built-for"]
    assert builder["services"]["nix-serve"] == {
        "bindAddress": "10.0.0.1",
        "port": 5000,
        "secretKeyFile": "/run/keys/builds",
    }
    assert sorted(builder["kept"]) == sorted(
        [
            *["legacy-cuda-wheels-pascal", "llama-cpp", "ollama"],
            "legacy-cuda-wheels-vllm-cuda-12",
            *["legacy-cuda-wheels-kepler", "llama-cpp"],
        ]
    )
    assert builder["nvidia"] is None and builder["nix"]["buildMachines"] == []
    machine, unknown = other["nix"]["buildMachines"]
    assert (machine["publicHostKey"], unknown["publicHostKey"]) == ("a2V5", None)
    assert other["nix"]["distributedBuilds"] is True
    assert machine["hostName"] == "10.0.0.1" and machine["systems"] == ["x86_64-linux"]
    # what PyTorch's and vLLM's packages ask for
    assert machine["supportedFeatures"] == ["big-parallel"]
    assert other["nix"]["settings"]["builders-use-substitutes"] is True
    assert "http://example.org:5000" in other["nix"]["settings"]["substituters"]
    assert "builds-1:a2V5" in other["nix"]["settings"]["trusted-public-keys"]


def test_what_is_built_is_what_a_machine_with_these_cards_takes(outputs: Outputs) -> None:
    """Cards of one machine with different capabilities have packages of their own."""
    built, taken, alone = outputs.evaluate(
        """
        let
          evaluate = module: (flake.nixpkgs.lib.nixosSystem {
            modules = [ flake.nixosModules.default module ];
          }).config;
          built = (evaluate {
            services.legacy-cuda.builds.serve = {
              enable = true;
              secretKeyFile = "/run/keys/builds";
              gpus = [ [ "p100" "p40" ] "p40" ];
            };
          }).system.extraDependencies;
          capabilities = package: package.recorded.cudaPackages.config.cudaCapabilities;
          taken = (evaluate {
            hardware.legacy-cuda.gpus = [ "p40" "p100" ];
          }).services.legacy-cuda.llama-cpp.package;
        in
        [
          (map capabilities (builtins.filter (package: package.name == "llama-cpp") built))
          (capabilities taken)
          (capabilities (flake.lib.packagesFor [ "p40" ]).llama-cpp)
        ]
        """
    )
    assert built == [taken, alone] == [["6.0", "6.1"], ["6.1"]]


@pytest.mark.parametrize("cards", ['[ "p41" ]', '[ [ "p40" "p41" ] ]', "[ [ ] ]"])
def test_cards_to_build_for_that_are_none(outputs: Outputs, cards: str) -> None:
    said = outputs.fails(
        f"""
        (flake.nixpkgs.lib.nixosSystem {{
          modules = [
            flake.nixosModules.builds
            {{ services.legacy-cuda.builds.serve.gpus = {cards}; }}
          ];
        }}).config.services.legacy-cuda.builds.serve.gpus
        """
    )
    assert "services.legacy-cuda.builds.serve.gpus" in said and "is not of type" in said


@pytest.mark.parametrize("later", [False, True])
def test_options_of_this_nixos_and_of_a_later_one(outputs: Outputs, later: bool) -> None:
    """`services.llama-cpp` and `services.ollama` of 26.05, and as they were changed after it. A
    checkout has one of the two."""
    found = outputs.evaluate(
        f"""
        let {HELPERS} in (host (flake.nixpkgs.lib.nixosSystem {{
          later = {"true" if later else "false"};
          modules = [
            flake.nixosModules.default
            {{
              hardware.legacy-cuda.gpus = [ "p40" ];
              services.legacy-cuda.ollama = {{ enable = true; modelsDir = "/o"; }};
              services.legacy-cuda.llama-cpp = {{
                enable = true;
                modelsDir = "/l";
                settings = {{
                  port = 8081;
                  jinja = true;
                  mlock = false;
                  override-kv = [ "a" "b" ];
                }};
              }};
            }}
          ];
        }})).services
        """
    )
    ollama, llama_cpp = found["ollama"], found["llama-cpp"]
    assert ollama.get("modelsDir", ollama.get("models")) == "/o"
    if "LEGACY_CUDA_NIXPKGS" not in os.environ:
        assert ("modelsDir" in ollama) is ("settings" in llama_cpp) is later
    if "settings" in llama_cpp:
        wanted = {
            "host": "127.0.0.1",
            "port": 8081,
            "models-dir": "/l",
            "n-gpu-layers": 99,
            "jinja": True,
            "mlock": False,
            "override-kv": ["a", "b"],
        }
        # NixOS's own may be there beside them
        assert {name: llama_cpp["settings"][name] for name in wanted} == wanted
    else:
        assert llama_cpp == {
            "host": "127.0.0.1",
            "port": 8081,
            "model": None,
            "modelsDir": "/l",
            "extraFlags": [
                *["--jinja", "--n-gpu-layers", "99"],
                *["--override-kv", "a", "--override-kv", "b"],
            ],
        }


def test_containers_are_told_of_the_cards_when_the_driver_is_there(hosts: dict[str, Host]) -> None:
    """Listed earlier, there are none; and where containers are not asked for, there is no unit."""
    generator = "nvidia-container-toolkit-cdi-generator"
    assert [name for name, host in hosts.items() if generator in host["units"]] == ["p4-edge"]
    unit = hosts["p4-edge"]["units"][generator]
    assert unit["wants"] == ["legacy-cuda-ready.service"]
    assert "legacy-cuda-ready.service" in unit["after"]


@pytest.mark.parametrize("option", ["llama-cpp.model", "llama-cpp.modelsDir", "ollama.modelsDir"])
def test_models_are_named_from_the_root_on(outputs: Outputs, option: str) -> None:
    """An engine starts in a folder of its own; said of our option, not of NixOS's behind it."""
    said = outputs.fails(
        f"""
        let {HELPERS} in (machine {{
          hardware.legacy-cuda.gpus = [ "p40" ];
          services.legacy-cuda.{option} = "models";
          services.legacy-cuda.{option.split(".")[0]}.enable = true;
        }}).failed
        """
    )
    assert f"option `services.legacy-cuda.{option}' is not of type" in said
    assert "string matching the pattern /.+" in said


def test_an_engine_waits_for_the_driver(hosts: dict[str, Host]) -> None:
    """One that starts earlier stays on the CPU and does not say so."""
    for host in hosts.values():
        for name in set(SERVED.values()) & set(host["units"]):
            unit = host["units"][name]
            assert unit["requires"] == ["legacy-cuda-ready.service"]
            assert "legacy-cuda-ready.service" in unit["after"]


def test_the_exporter_reaches_a_driver_that_comes_later(
    hosts: dict[str, Host], more_hosts: dict[str, Host]
) -> None:
    """systemd looks the name of a device up once, when the unit starts, so a unit that names one
    has to start after the driver."""
    found = {}
    for host in (*hosts.values(), *more_hosts.values()):
        for name, unit in host["units"].items():
            allowed = unit["serviceConfig"].get("DeviceAllow", [])
            if name.startswith(("legacy-cuda-", "llama-cpp")) and allowed:
                by_name = [one for one in allowed if not re.match(r"char-[0-9]+ rw$", one)]
                found[name] = by_name
                assert not by_name or "legacy-cuda-ready.service" in unit["after"], name
    assert found["legacy-cuda-monitor"] == []
    assert found["llama-cpp"] == found["legacy-cuda-vllm"] == ["char-nvidia-uvm rw"]


# Every card ---------------------------------------------------------------------------------------


def test_every_card(outputs: Outputs, tmp_path: Path) -> None:
    """Driver, kernel module and refusals are those of the resolver, for each card and engine."""
    questions = [([gpu.name], engine) for gpu in catalog.gpus() for engine in ["", *ENGINES]]
    branches = {branch.branch for branch in catalog.branches() if branch.nixos_attribute}
    found = ask(outputs, tmp_path, questions)
    refused = 0
    for (names, engine), host in zip(questions, found, strict=True):
        gpus = [catalog.find_gpu(name) for name in names]
        expected = []
        if (torch := refusal_of(gpus, "torch")) and torch.rule == "not-legacy":
            expected.append(in_words(torch))
        else:
            # NixOS has the branch
            driver = drivers_for([gpus[0].capability])[-1]
            assert driver.branch.branch in branches
            assert host["branch"] == driver.branch.branch
            assert host["open"] is (driver.flavour == "open")
        refusal = refusal_of(gpus, engine) if engine else None
        if refusal and refusal.rule == "engine-not-packaged" and engine == "ollama":
            refusal = torch
        if refusal:
            expected.append(in_words(refusal))
            refused += 1
        elif engine and engine not in SERVED:
            expected.append(f"services.legacy-cuda.{engine}: there is no service of it yet")
        assert sorted(host["failed"]) == sorted(expected), (names, engine)
        started = {SERVED[engine]} if engine in SERVED and not expected else set()
        assert set(host["units"]) & set(SERVED.values()) == started, (names, engine)
    assert refused > len(catalog.gpus())


def ask(
    outputs: Outputs, folder: Path, questions: list[tuple[list[str], str]]
) -> list[dict[str, Any]]:
    """What machines with these cards, and an engine switched on, say. In one evaluation."""
    asked = folder / "questions.json"
    asked.write_text(json.dumps(questions))
    found: list[dict[str, Any]] = outputs.evaluate(
        f"""
        let
          evaluate = question:
            let
              engine = builtins.elemAt question 1;
              evaluated = flake.nixpkgs.lib.nixosSystem {{
                modules = [
                  flake.nixosModules.default
                  {{ hardware.legacy-cuda.gpus = builtins.elemAt question 0; }}
                  {{
                    services.legacy-cuda = if engine == "" then {{ }}
                      else {{
                        ${{engine}} = {{ enable = true; }}
                          // (if builtins.elem engine [ "llama-cpp" "vllm" ]
                            then {{ model = "/m"; }} else {{ }});
                      }};
                  }}
                ];
              }};
              inherit (evaluated) config;
              failed = builtins.filter (one: !one.assertion) config.assertions;
            in
            {{
              failed = map (one: one.message) failed;
              inherit (config.hardware.legacy-cuda) branch;
              inherit (config.hardware.nvidia) open;
              # as they are only where nothing failed
              units = if failed == [ ] then builtins.attrNames config.systemd.services else [ ];
            }};
        in
        map evaluate (builtins.fromJSON (builtins.readFile {as_nix(asked)}))
        """
    )
    return found


@pytest.mark.parametrize(
    "gpus", [["k80", "p40"], ["p40", "rtx5090"], ["k80", "h100"], ["v100", "h100"]]
)
def test_cards_together(outputs: Outputs, tmp_path: Path, gpus: list[str]) -> None:
    (host,) = ask(outputs, tmp_path, [(gpus, "")])
    cards = [catalog.find_gpu(name) for name in gpus]
    refusal = refusal_of(cards, "torch")
    if refusal and refusal.rule in ("kernel-module-flavour", "driver-branch"):
        assert host["failed"] == [in_words(refusal)]
    else:
        assert host["failed"] == []
        assert host["branch"] == drivers_for([gpu.capability for gpu in cards])[-1].branch.branch


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("{ services.legacy-cuda.ollama.enable = true; }", "hardware.legacy-cuda.gpus is empty"),
        ("{ services.legacy-cuda.vllm.enable = true; }", "hardware.legacy-cuda.gpus is empty"),
        ("{ services.legacy-cuda.sglang.enable = true; }", "hardware.legacy-cuda.gpus is empty"),
        (
            "{ services.legacy-cuda.monitoring.enable = true; }",
            "hardware.legacy-cuda.gpus is empty",
        ),
        (
            '{ hardware.legacy-cuda.gpus = [ "p40" ]; services.legacy-cuda.vllm.enable = true; }',
            "services.legacy-cuda.vllm: set model",
        ),
        (
            '{ hardware.legacy-cuda = { gpus = [ "p40" "k80" ];'
            ' idlePower = { enable = true; cards = [ "p40" "k80" ]; }; }; }',
            "idlePower.cards: no state of a Tesla K80 that saves power is known",
        ),
        (
            '{ hardware.legacy-cuda = { gpus = [ "p40" ]; powerLimits.p40 = 400; }; }',
            "powerLimits.p40: a Tesla P40 is made for 250 W",
        ),
        (
            '{ hardware.legacy-cuda = { gpus = [ "p40" ]; powerLimits.p4 = 50; }; }',
            "powerLimits.p4: there is no such card",
        ),
        (
            '{ hardware.legacy-cuda = { gpus = [ "k80" ]; branch = "580"; }; }',
            "driver branch 580 does not serve k80; the newest that does is 470",
        ),
        (
            '{ hardware.legacy-cuda.gpus = [ "p40" ];'
            " services.legacy-cuda.llama-cpp.enable = true; }",
            "set either model or modelsDir",
        ),
        *(
            (
                f'{{ hardware.legacy-cuda.gpus = [ "p40" ]; services.legacy-cuda.{engine} ='
                f' {{ enable = true; {option} = "{path}"; }}; }}',
                f"services.legacy-cuda.{engine}.{option}: services do not see /home and /root",
            )
            for engine, option, path in [
                ("vllm", "model", "/home/user/model"),
                ("llama-cpp", "model", "/root/user/model.gguf"),
                ("llama-cpp", "modelsDir", "/home/user"),
                ("ollama", "modelsDir", "/home/user/models"),
            ]
        ),
        (
            '{ hardware.legacy-cuda.gpus = [ "p40" ]; services.legacy-cuda.web-ui.enable = true; }',
            "no engine of services.legacy-cuda is switched on",
        ),
        # an answer for torch that is not about drivers, and no driver of NixOS
        (
            '{ hardware.legacy-cuda.gpus = [ "k40" "h100" ]; }',
            "no driver that NixOS has serves k40, h100 in one machine",
        ),
        (
            '{ hardware.legacy-cuda.gpus = [ "p40" ]; services.legacy-cuda = {'
            " web-ui.enable = true; vllm = { enable = true;"
            ' cluster = { role = "worker"; address = "a"; head = "b"; }; }; }; }',
            "no engine of services.legacy-cuda is switched on",
        ),
        (
            '{ hardware.legacy-cuda.gpus = [ "p40" ];'
            " services.legacy-cuda = { ollama.enable = true; gateway.enable = true; }; }",
            "services.legacy-cuda.gateway: nothing to offer",
        ),
        (
            '{ pkgs, ... }: { hardware.legacy-cuda.gpus = [ "k80" ];'
            " boot.kernelPackages = pkgs.linuxKernel.packages.linux_7_1; }",
            "driver branch 470 does not compile on Linux 7.1.9",
        ),
    ],
)
def test_what_cannot_work_is_said(outputs: Outputs, module: str, said: str) -> None:
    failed = outputs.evaluate(f"let {HELPERS} in (machine ({module})).failed")
    assert any(said in message for message in failed), failed


@pytest.mark.parametrize(
    ("settings", "warned"),
    [
        ("powerLimits.k80 = 200;", True),
        ('thermalGuard = { enable = true; cards = [ "k80" ]; };', True),
        ('thermalGuard.cards = [ "k80" ];', False),
        ("thermalGuard.enable = true;", False),
    ],
)
def test_a_limit_for_a_k80_is_warned_of(outputs: Outputs, settings: str, warned: bool) -> None:
    warnings = outputs.evaluate(
        f"""
        let {HELPERS} in (machine {{
          hardware.legacy-cuda = {{ gpus = [ "k80" "p40" ]; {settings} }};
        }}).warnings
        """
    )
    assert len(warnings) == (1 if warned else 0)
    assert not warned or "k80" in warnings[0]


@pytest.mark.parametrize(
    ("settings", "option"),
    [
        ('gpus = [ "p41" ];', "gpus"),
        ('gpus = [ "p40" ]; thermalGuard.cards = [ "p4" ];', "thermalGuard.cards"),
        ('gpus = [ "p40" ]; branch = "999";', "branch"),
    ],
)
def test_a_name_that_is_none(outputs: Outputs, settings: str, option: str) -> None:
    said = outputs.fails(
        f"""
        let {HELPERS} in (flake.nixpkgs.lib.nixosSystem {{
          modules = [ flake.nixosModules.hardware {{ hardware.legacy-cuda = {{ {settings} }}; }} ];
        }}).config.hardware.legacy-cuda.{option}
        """
    )
    assert f"hardware.legacy-cuda.{option}" in said and "is not of type" in said


def test_nothing_happens_without_cards(outputs: Outputs) -> None:
    host = outputs.evaluate(f"let {HELPERS} in machine {{ }}")
    assert host["units"] == {} and host["nvidia"] is None and host["failed"] == []


@pytest.mark.parametrize(
    ("gpu", "default", "kernel"),
    [("k80", "7_1", "6.18.40"), ("p40", "7_1", "7.1.9"), ("k80", "6_18", "6.18.40")],
)
def test_the_kernel(outputs: Outputs, gpu: str, default: str, kernel: str) -> None:
    """Left alone where the driver compiles on it, else the newest that it does compile on."""
    found = outputs.evaluate(
        f"""
        let
          pkgs = flake.nixpkgs.legacyPackages.x86_64-linux;
          evaluated = flake.nixpkgs.lib.nixosSystem {{
            pkgs = pkgs // {{ linuxPackages = pkgs.linuxKernel.packages.linux_{default}; }};
            modules = [
              flake.nixosModules.hardware
              {{ hardware.legacy-cuda.gpus = [ "{gpu}" ]; }}
            ];
          }};
        in
        evaluated.config.boot.kernelPackages.kernel.version
        """
    )
    assert found == kernel


def test_a_part_brings_what_it_needs(outputs: Outputs) -> None:
    """Each part alone, and all of them beside `default`, which has them already."""
    parts = outputs.evaluate("builtins.attrNames flake.nixosModules")
    assert parts == [
        *["builds", "default", "gateway", "hardware", "llama-cpp"],
        *["monitoring", "ollama", "refused", "vllm", "web-ui"],
    ]
    for some in [*([part] for part in parts), parts]:
        modules = " ".join(f"flake.nixosModules.{part}" for part in some)
        branch = outputs.evaluate(
            f"""
            (flake.nixpkgs.lib.nixosSystem {{
              modules = [
                {modules}
                flake.nixosModules.hardware
                {{ hardware.legacy-cuda.gpus = [ "m40" ]; }}
              ];
            }}).config.hardware.legacy-cuda.branch
            """
        )
        assert branch == "580"


def test_settings_win_over_what_suits_the_card(outputs: Outputs) -> None:
    host = outputs.evaluate(
        f"""
        let {HELPERS} in machine ({{ lib, pkgs, ... }}: {{
          hardware.legacy-cuda.gpus = [ "k80" "k80" ];
          hardware.nvidia.package = pkgs.linuxPackages.nvidiaPackages.legacy_535;
          hardware.legacy-cuda.resumeRepair.units = [ "mine.service" ];
          services.legacy-cuda.llama-cpp = {{
            enable = true;
            modelsDir = "/m";
            package = pkgs.curl;
            settings.flash-attn = "on";
          }};
        }})
        """
    )
    assert host["nvidia"]["version"] == "535.288.01"
    settings = flags_of(host["services"]["llama-cpp"])
    assert settings["flash-attn"] == "on" and settings["models-dir"] == "/m"
    resume = host["units"]["legacy-cuda-resume"]["serviceConfig"]["ExecStart"]
    assert resume.endswith(" mine.service llama-cpp.service") or resume.endswith(
        " llama-cpp.service mine.service"
    )


# systemd ------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def systemd() -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.fail("systemd-analyze is not on PATH: apt-get install systemd")


@pytest.mark.parametrize("name", TEMPLATES)
def test_systemd_has_nothing_to_say(
    hosts: dict[str, Host], systemd: None, tmp_path: Path, name: str
) -> None:
    own = {unit: facts for unit, facts in hosts[name]["units"].items() if units.is_started(facts)}
    assert own
    assert units.verify(own, tmp_path) == ""


def test_what_verify_finds(hosts: dict[str, Host], systemd: None, tmp_path: Path) -> None:
    """That the silence above means something."""
    unit = json.loads(json.dumps(hosts["p40"]["units"]["legacy-cuda-ready"]))
    unit["serviceConfig"]["ProtectHoem"] = True
    assert "ProtectHoem" in units.verify({"legacy-cuda-ready": unit}, tmp_path)


def test_systemd_has_nothing_to_say_of_the_others(
    more_hosts: dict[str, Host], systemd: None, tmp_path: Path
) -> None:
    seen = set()
    for name, host in more_hosts.items():
        own = {unit: facts for unit, facts in host["units"].items() if units.is_started(facts)}
        folder = tmp_path / name
        folder.mkdir()
        assert not own or units.verify(own, folder) == ""
        seen |= set(own)
    assert {"legacy-cuda-vllm", "legacy-cuda-ray"} < seen


def test_exposure(
    hosts: dict[str, Host], more_hosts: dict[str, Host], systemd: None, tmp_path: Path
) -> None:
    """No service of ours scores above 3.0 in ``systemd-analyze security``. With a checkout the
    engines' units are whole; those of NVIDIA's driver (``nvidia-*``) are not ours."""
    seen = {}
    for template, host in {**hosts, **more_hosts}.items():
        for name, unit in host["units"].items():
            if units.is_started(unit) and not name.startswith("nvidia-"):
                seen[f"{template} {name}"] = units.exposure(unit, name, tmp_path)
    assert seen and max(seen.values()) <= 3.0, seen


# The scripts of the units, run by bash ------------------------------------------------------------


def program(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_text(f"#!/bin/bash\n{text}")
    file.chmod(0o755)


def command(script: str, *arguments: str) -> list[str]:
    # as writeShellApplication starts it
    return [
        "bash",
        "-o",
        "errexit",
        "-o",
        "nounset",
        "-o",
        "pipefail",
        str(MODULES / script),
        *arguments,
    ]


def environment(folder: Path, **more: str) -> dict[str, str]:
    return {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", **more}


@pytest.fixture
def smi(tmp_path: Path) -> Path:
    """An nvidia-smi with two P40s and a P4, which writes down what it is told."""
    (tmp_path / "degrees").write_text("40")
    program(
        tmp_path / "bin",
        "nvidia-smi",
        f"""case "$*" in
  *power-limit=*) echo "$*" >> {tmp_path}/calls; [ ! -e {tmp_path}/broken ]; exit ;;
  *temperature*)
    [ -s {tmp_path}/degrees ] || exit 9
    limit=250.00
    [ ! -e {tmp_path}/limit ] || limit=$(cat {tmp_path}/limit)
    echo "0, 0x1B3810DE, $(cat {tmp_path}/degrees), $limit, 125.00, 250.00"
    echo "1, 0x1B3810DE, [N/A], [N/A], [N/A], [N/A]"
    echo "2, 0x1BB310DE, 99, 75.00, 60.00, 75.00"
    ;;
  *persistence_mode*)
    mode=Enabled
    [ ! -e {tmp_path}/lets-go ] || mode=Disabled
    echo "0, 0x1B3810DE, $mode"; echo "1, 0x1B3810DE, $mode"; echo "2, 0x1BB310DE, $mode"
    ;;
  *) echo "0, 0x1B3810DE"; echo "1, 0x1B3810DE"; echo "2, 0x1BB310DE" ;;
esac
case "$*" in
  *query-gpu*)
    if [ -e {tmp_path}/lost ]; then
      echo "Unable to determine the device handle for GPU0000:09:00.0: GPU is lost."
      exit 15
    fi
    ;;
esac
""",
    )
    return tmp_path / "calls"


def test_power_limits(tmp_path: Path, smi: Path) -> None:
    arguments = [str(tmp_path / "bin" / "nvidia-smi"), "10de:1b38=180", "10de:15f8=200"]
    subprocess.run(command("power-limits.sh", *arguments), check=True, timeout=20)
    assert smi.read_text().splitlines() == [
        "--id=0 --power-limit=180",
        "--id=1 --power-limit=180",
    ]


def test_a_limit_that_is_not_taken_fails_the_unit(tmp_path: Path, smi: Path) -> None:
    (tmp_path / "broken").touch()
    arguments = [str(tmp_path / "bin" / "nvidia-smi"), "10de:1b38=180"]
    done = subprocess.run(command("power-limits.sh", *arguments), timeout=20)
    assert done.returncode == 1
    assert len(smi.read_text().splitlines()) == 2  # the second card is tried all the same


def test_cards_that_cannot_be_listed_fail_the_unit(tmp_path: Path) -> None:
    program(tmp_path / "bin", "nvidia-smi", "exit 9\n")
    arguments = [str(tmp_path / "bin" / "nvidia-smi"), "10de:1b38=180"]
    assert subprocess.run(command("power-limits.sh", *arguments), timeout=20).returncode == 1


def test_a_limit_that_will_be_lost_fails_the_unit(tmp_path: Path, smi: Path) -> None:
    (tmp_path / "lets-go").touch()
    arguments = [str(tmp_path / "bin" / "nvidia-smi"), "10de:1bb3=60"]
    done = subprocess.run(
        command("power-limits.sh", *arguments), capture_output=True, text=True, timeout=20
    )
    assert done.returncode == 1 and "card 2: persistence mode is off" in done.stderr
    assert smi.read_text() == "--id=2 --power-limit=60\n" and "card 0" not in done.stderr


def test_power_limits_beside_a_card_that_is_lost(tmp_path: Path, smi: Path) -> None:
    (tmp_path / "lost").touch()
    arguments = [str(tmp_path / "bin" / "nvidia-smi"), "10de:1b38=180"]
    assert subprocess.run(command("power-limits.sh", *arguments), timeout=20).returncode == 1
    assert len(smi.read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("states", "said"),
    [
        (["10de:1b38=8"], "--ids 0,1 --performance-state-low 8"),
        (["10de:1b38=8", "10de:1bb3=8"], "--ids 0,1,2 --performance-state-low 8"),
        (["10de:15f8=8"], None),  # no such card is there
        (["10de:1b38=8", "10de:1bb3=10"], None),
    ],
)
def test_idle_power(tmp_path: Path, smi: Path, states: list[str], said: str | None) -> None:
    calls = tmp_path / "pstated"
    program(tmp_path / "bin", "nvidia-pstated", f'echo "$*" > {calls}\n')
    programs = [str(tmp_path / "bin" / name) for name in ("nvidia-smi", "nvidia-pstated")]
    done = subprocess.run(
        command("idle-power.sh", *programs, *states), capture_output=True, text=True, timeout=20
    )
    if said is None:
        assert done.returncode == 1 and not calls.exists()
        assert "states are there" in done.stderr
    else:
        assert done.returncode == 0, done.stderr
        assert calls.read_text() == f"{said}\n"


def test_idle_power_of_a_p40(more_hosts: dict[str, Host]) -> None:
    unit = without_store(more_hosts["idle"]["units"]["legacy-cuda-idle-power"])
    assert unit["serviceConfig"]["ExecStart"].split()[2:] == [
        "nvidia-pstated/bin/nvidia-pstated",
        *(f"{pci}=8" for pci in catalog.find_gpu("p40").pci_ids),
    ]


def test_idle_power_is_never_for_a_k80_by_itself(outputs: Outputs) -> None:
    host = outputs.evaluate(
        f"""
        let {HELPERS} in machine {{
          hardware.legacy-cuda = {{ gpus = [ "k80" "p4" ]; idlePower.enable = true; }};
        }}
        """
    )
    assert host["failed"] == [] and "legacy-cuda-idle-power" not in host["units"]


def wait_for(calls: Path, count: int) -> list[str]:
    for _ in range(200):
        lines = calls.read_text().splitlines() if calls.exists() else []
        if len(lines) >= count:
            return lines
        time.sleep(0.05)
    raise AssertionError(f"{calls}: {lines}")


def test_thermal_guard(tmp_path: Path, smi: Path) -> None:
    arguments = [str(tmp_path / "bin" / "nvidia-smi"), "10de:1b38=85"]
    fast = environment(tmp_path, LEGACY_CUDA_GUARD_SECONDS="0.05")
    degrees = tmp_path / "degrees"

    def becomes(value: str) -> None:
        (tmp_path / "new").write_text(value)
        (tmp_path / "new").rename(degrees)

    guard = subprocess.Popen(
        command("thermal-guard.sh", *arguments), env=fast, stderr=subprocess.DEVNULL
    )
    try:
        becomes("85")
        assert wait_for(smi, 1) == ["--id=0 --power-limit=125.00"]
        becomes("76")  # still warm: nothing
        time.sleep(0.5)
        assert len(wait_for(smi, 1)) == 1
        becomes("")  # nothing to be had from nvidia-smi for a while
        time.sleep(0.3)
        becomes("75")
        assert wait_for(smi, 2)[1] == "--id=0 --power-limit=250.00"
        becomes("90")
        assert wait_for(smi, 3)[2] == "--id=0 --power-limit=125.00"
        guard.send_signal(signal.SIGTERM)
        assert guard.wait(timeout=10) == 0
        assert wait_for(smi, 4)[3] == "--id=0 --power-limit=250.00"
    finally:
        if guard.poll() is None:
            guard.kill()
            guard.wait()


@pytest.mark.parametrize(
    ("argument", "limit", "own"),
    [
        # left behind by a guard that was killed
        ("10de:1b38=85", "125.00", "250.00"),
        ("10de:1b38=85,180", "125.00", "180"),
        # set by somebody else
        ("10de:1b38=85,180", "200.00", "200.00"),
    ],
)
def test_thermal_guard_after_a_crash_while_hot(
    tmp_path: Path, smi: Path, argument: str, limit: str, own: str
) -> None:
    (tmp_path / "degrees").write_text("90")
    (tmp_path / "limit").write_text(limit)
    guard = subprocess.Popen(
        command("thermal-guard.sh", str(tmp_path / "bin" / "nvidia-smi"), argument),
        env=environment(tmp_path, LEGACY_CUDA_GUARD_SECONDS="0.05"),
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(smi, 1)
        guard.send_signal(signal.SIGTERM)
        assert guard.wait(timeout=10) == 0
        assert wait_for(smi, 2) == ["--id=0 --power-limit=125.00", f"--id=0 --power-limit={own}"]
    finally:
        if guard.poll() is None:
            guard.kill()
            guard.wait()


def test_thermal_guard_beside_a_card_that_is_lost(tmp_path: Path, smi: Path) -> None:
    (tmp_path / "lost").touch()
    (tmp_path / "degrees").write_text("90")
    guard = subprocess.Popen(
        command("thermal-guard.sh", str(tmp_path / "bin" / "nvidia-smi"), "10de:1b38=85"),
        env=environment(tmp_path, LEGACY_CUDA_GUARD_SECONDS="0.05"),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert wait_for(smi, 1) == ["--id=0 --power-limit=125.00"]
        time.sleep(0.3)  # some more rounds
        guard.send_signal(signal.SIGTERM)
        _, said = guard.communicate(timeout=10)
        assert said.count("nvidia-smi ends with 15") == 1
    finally:
        if guard.poll() is None:
            guard.kill()
            guard.wait()


@pytest.mark.parametrize("present", [["nvidiactl", "nvidia-uvm"], ["nvidiactl"], []])
def test_ready(tmp_path: Path, present: list[str]) -> None:
    for name in present:
        (tmp_path / name).touch()
    done = subprocess.run(
        command("ready.sh", "1"),
        env=environment(tmp_path, LEGACY_CUDA_DEV=str(tmp_path)),
        capture_output=True,
        text=True,
        timeout=20,
    )
    missing = [name for name in ("nvidiactl", "nvidia-uvm") if name not in present]
    assert done.returncode == (1 if missing else 0)
    assert not missing or f"{tmp_path}/{missing[0]} did not appear" in done.stderr


@pytest.mark.parametrize(
    ("active", "busy", "stuck"),
    list(itertools.product([[], ["ollama.service"]], [False, True], [False, True])),
)
def test_resume(tmp_path: Path, active: list[str], busy: bool, stuck: bool) -> None:
    """What runs is stopped and started again, also where the module cannot be taken out or the
    unit does not stop."""
    calls = tmp_path / "calls"
    wanted = "|".join(active) or "none"
    program(
        tmp_path / "bin",
        "systemctl",
        f"""[ "$1" = --quiet ] && {{ case "$3" in {wanted}) exit 0 ;; esac; exit 3; }}
echo "systemctl $*" >> {calls}
[ "$1" != stop ] || {"false" if stuck else "true"}\n""",
    )
    program(tmp_path / "bin", "modprobe", f'echo "modprobe $*" >> {calls}\n')
    program(
        tmp_path / "bin", "rmmod", f'echo "rmmod $*" >> {calls}; {"false" if busy else "true"}\n'
    )
    done = subprocess.run(
        command("resume.sh", "ollama.service", "llama-cpp.service"),
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert done.returncode == (1 if busy else 0)
    assert calls.read_text().splitlines() == [
        *(f"systemctl stop {unit}" for unit in active),
        "rmmod nvidia_uvm",
        *([] if busy else ["modprobe nvidia_uvm"]),
        *(f"systemctl start --no-block {unit}" for unit in active),
    ]
    assert ("in use by something else" in done.stderr) is busy


def test_resume_that_systemd_ends_starts_what_it_stopped(
    tmp_path: Path, hosts: dict[str, Host]
) -> None:
    """A unit that hangs while it stops does not keep the others stopped."""
    assert hosts["p40"]["units"]["legacy-cuda-resume"]["serviceConfig"]["TimeoutStartSec"] == 120
    calls = tmp_path / "calls"
    program(
        tmp_path / "bin",
        "systemctl",
        f"""[ "$1" != --quiet ] || exit 0
echo "systemctl $*" >> {calls}
[ "$1" != stop ] || exec sleep 60\n""",
    )
    resume = subprocess.Popen(
        command("resume.sh", "ollama.service"),
        env=environment(tmp_path),
        start_new_session=True,
    )
    try:
        wait_for(calls, 1)
        # as systemd does it: to every process of the unit
        os.killpg(resume.pid, signal.SIGTERM)
        resume.wait(timeout=10)
        assert calls.read_text().splitlines() == [
            "systemctl stop ollama.service",
            "systemctl start --no-block ollama.service",
        ]
    finally:
        if resume.poll() is None:
            os.killpg(resume.pid, signal.SIGKILL)
            resume.wait()
