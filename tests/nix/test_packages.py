"""The flake's packages: which there are, and with which arguments nixpkgs is asked for each.

With stubs for the inputs, so no package is built. That nixpkgs takes these arguments was read in
its files: tools/nixpkgs_attributes.py.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name as canonical

from legacy_cuda import catalog
from legacy_cuda.build.patches import parse
from legacy_cuda.capability import Capability
from legacy_cuda.catalog import Gpu
from legacy_cuda.catalog.locks import load_lock
from legacy_cuda.catalog.patched import find_patched, patched
from legacy_cuda.catalog.recipes import find_recipe
from legacy_cuda.resolve import Stack, resolve
from tests.nix.nixrun import ROOT, Outputs, without_store

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Packages = dict[str, dict[str, Any]]


def stack_of(gpu: Gpu, engine: str) -> Stack | None:
    found = resolve([gpu], catalog.find_engine(engine))
    return found if isinstance(found, Stack) else None


CARDS = [gpu for gpu in catalog.gpus() if stack_of(gpu, "torch")]
ONE_OF_EACH = list({gpu.capability: gpu for gpu in CARDS}.values())


@pytest.fixture(scope="session")
def packages(outputs: Outputs) -> Packages:
    """What every package was made from, by its name."""
    found: Packages = without_store(
        outputs.evaluate("builtins.mapAttrs (_: one: one.recorded) flake.packages.x86_64-linux")
    )
    return found


def expected_names(gpu: Gpu) -> set[str]:
    torch = stack_of(gpu, "torch")
    assert torch is not None
    names = {f"wheels-{gpu.name}", f"image-{gpu.name}-torch"}
    if "triton" in torch.facts.patched:
        names |= {f"torch-{gpu.name}", f"triton-{gpu.name}"}
    offered = {engine for engine in ("llama-cpp", "vllm") if stack_of(gpu, engine)}
    # nixpkgs has it, so there it need not be in a lock of ours
    if catalog.find_engine("ollama").rule(gpu.capability).verdict != "refused":
        offered.add("ollama")
    return names | {f"{e}-{gpu.name}" for e in offered} | {f"image-{gpu.name}-{e}" for e in offered}


def test_which_packages_there_are(packages: Packages) -> None:
    names = set.union(*map(expected_names, CARDS))
    assert set(packages) == names | {"legacy-cuda", "default"}
    assert "ollama-k80" not in packages
    assert "torch-k80" not in packages


@pytest.mark.parametrize("gpu", ONE_OF_EACH, ids=lambda gpu: gpu.name)
def test_code_for_just_the_card(packages: Packages, gpu: Gpu) -> None:
    """One import of nixpkgs for each capability: its CUDA, its targets, its cuDNN."""
    torch = stack_of(gpu, "torch")
    assert torch is not None
    with (catalog.DATA / "cudnn.toml").open("rb") as file:
        rows = tomllib.load(file)["cudnn"]
    bound = min(
        catalog.version_tuple(row["dropped_in"])
        for row in rows
        if "dropped_in" in row
        and Capability.parse(row["capability_min"])
        <= gpu.capability
        <= Capability.parse(row["capability_max"])
    )
    seen = 0
    for engine in ("llama-cpp", "ollama", "torch"):
        made = packages.get(f"{engine}-{gpu.name}")
        if made is None:
            continue
        seen += 1
        cuda = made["cudaPackages"]
        assert cuda["config"] == {
            "allowUnfree": True,
            "cudaSupport": True,
            "cudaCapabilities": [str(gpu.capability)],
            "cudaForwardCompat": False,
        }
        assert cuda["cudaMajorMinorVersion"] == "{}.{}".format(*torch.toolkit.version)
        cudnn = cuda["manifests"]["cudnn"]
        assert cudnn["release_label"] == cudnn["release_date"]
        assert catalog.version_tuple(cudnn["release_label"]) < bound
        # and none newer of those that there are
        assert cudnn["release_label"] == ("8.7.0" if bound < (9,) else "9.10.2")
    assert seen


def test_arguments(packages: Packages) -> None:
    assert packages["ollama-p40"]["acceleration"] == "cuda"
    assert packages["ollama-p40"]["cudaArches"] == ["sm_61"]
    assert packages["llama-cpp-k80"]["cudaSupport"] is True
    assert packages["llama-cpp-k80"]["cudaPackages"]["cudaMajorMinorVersion"] == "11.8"
    torch = packages["torch-p40"]
    assert torch["gpuTargets"] == ["6.1"]
    assert torch["_tritonEffective"] == "triton"
    own = packages["legacy-cuda"]
    assert own["pname"] == "legacy-cuda" and "uv" in own["dependencies"]


def test_dependencies_of_the_command_line(packages: Packages) -> None:
    """Those of pyproject.toml: nixpkgs' build stops where one is missing."""
    with (ROOT / "python" / "pyproject.toml").open("rb") as file:
        wanted = tomllib.load(file)["project"]["dependencies"]
    own = packages["legacy-cuda"]
    # a condition on the Python is one that nixpkgs' is too new for
    names = {canonical(Requirement(one).name) for one in wanted if ";" not in one}
    assert set(own["dependencies"]) == names


def test_what_nixpkgs_has_not_is_what_is_pinned(outputs: Outputs) -> None:
    """abi3info: the version and a sha256 of requirements.txt."""
    made = outputs.evaluate(
        """
        (flake.nixpkgs.legacyPackages.x86_64-linux.python3Packages.callPackage
          (nix + "/../pkgs/abi3info/package.nix") { }).recorded.src.recorded
        """
    )
    pinned = (ROOT / "python" / "requirements.txt").read_text()
    lines = pinned[pinned.index("abi3info==") :].splitlines()
    assert lines[0].split()[0] == f"abi3info=={made['version']}"
    hashes = itertools.takewhile(lambda line: line.startswith(" "), lines[1:])
    assert any(made["sha256"] in line for line in hashes)
    assert made["format"] == "wheel"


def test_triton_finds_its_programs_on_nixos(outputs: Outputs) -> None:
    """In the dev shells too; NVIDIA's ptxas only where a nixpkgs allows what is not free."""
    found = without_store(
        outputs.evaluate(
            """
            let
              brief = shells: builtins.mapAttrs (_: shell: removeAttrs shell.recorded.env
                [ "LD_LIBRARY_PATH" "UV_PYTHON" ]) { inherit (shells) p40 v100 k80; };
            in
            {
              ours = brief flake.devShells.x86_64-linux;
              free = brief (flake.lib.mkDevShells flake.nixpkgs.legacyPackages.x86_64-linux);
            }
            """
        )
    )
    names = ("CC", "TRITON_LIBCUDA_PATH", "TRITON_PTXAS_PATH")
    ours, free = (
        {gpu: [shell.get(name) for name in names] for gpu, shell in found[which].items()}
        for which in ("ours", "free")
    )
    common = ["gcc-wrapper/bin/cc", "/run/opengl-driver/lib"]
    assert ours == {
        "p40": [*common, "/cuda_nvcc-12.6/bin/ptxas"],
        "v100": [*common, "/cuda_nvcc-12.8/bin/ptxas"],
        "k80": [None] * 3,  # no Triton has code for it
    }
    assert free == {"p40": [*common, None], "v100": [*common, None], "k80": [None] * 3}


def test_triton_is_patched_where_it_is_installed(packages: Packages) -> None:
    """nixos-25.11 has Triton 3.5.1; every patch of that series is applied, and nothing fuzzily."""
    install = packages["triton-p40"]["postInstall"]
    assert install.startswith("upstream's\n")
    row = find_patched("triton", "3.5.1")
    folder = Path(catalog.DATA).parents[1] / "patches" / "triton" / "3.5.1"
    for patch in sorted(folder.iterdir()):
        assert install.count(f"{patch.name}\n") == 1
    assert install.count("--fuzz=0") == len(list(folder.iterdir()))
    for module in row.modules:
        assert f" {module.source} " in install and f'/{module.target}"' in install


def test_pytorch_is_patched_before_it_is_compiled(packages: Packages) -> None:
    """nixos-25.11 has PyTorch 2.9.1; its patches are well formed, numbered, and all taken."""
    folder = ROOT / "pkgs" / "torch" / "2.9.1"
    paths = sorted(folder.iterdir())
    assert [path.name[:5] for path in paths] == [f"{at:04}-" for at in range(1, len(paths) + 1)]
    upstream, *ours = packages["torch-p40"]["patches"]
    assert upstream == "/upstream.patch"
    assert [Path(path).name for path in ours] == [path.name for path in paths]
    # the series of the wheels' version, carried over: the same names, for the same capabilities
    for path in paths:
        patch = parse(path.read_bytes(), path.name)
        before = Path(catalog.DATA).parents[1] / "patches" / "torch" / "2.7.1" / path.name
        assert patch.capabilities == parse(before.read_bytes(), path.name).capabilities
        assert len(patch.why) > 20 and "2.9.1" in path.read_text().split("\n--- ")[0]


def test_a_pytorch_without_patches_is_refused(outputs: Outputs) -> None:
    said = outputs.fails(
        """
        (flake.nixpkgs.legacyPackages.x86_64-linux.callPackage
          (nix + "/../pkgs/torch/package.nix") { triton = "triton"; }).recorded
        """
    )
    assert "nixpkgs has PyTorch 2.12.0; there are patches for 2.9.1" in said


def test_a_triton_without_patches_is_refused(outputs: Outputs) -> None:
    said = outputs.fails(
        """
        (flake.nixpkgs.legacyPackages.x86_64-linux.callPackage
          (nix + "/../pkgs/triton/package.nix") { series = [ { version = "3.5.1"; } ]; }).recorded
        """
    )
    assert "nixpkgs has Triton 3.7.0; there are patches for 3.5.1" in said


# vLLM ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def vllm(outputs: Outputs) -> dict[str, Any]:
    """Of a P40 and a P100: the wheel, and the environments with it."""
    found: dict[str, Any] = without_store(
        outputs.evaluate(
            """
            builtins.mapAttrs (_: made: {
              wheel = made.wheel.recorded // { src = made.wheel.recorded.src.recorded; };
              inherit (made.recorded) script;
              ray = made.withRay.recorded.script;
              files = map (one: { inherit (one) file requirement; }) made.files;
              python = made.python.pythonVersion;
            }) { p40 = flake.packages.x86_64-linux.vllm-p40;
                 p100 = flake.packages.x86_64-linux.vllm-p100; }
            """
        )
    )
    return found


@pytest.mark.parametrize(("gpu", "architectures"), [("p40", "61-real"), ("p100", "60-real")])
def test_vllm_is_compiled_as_the_recipe_says(
    vllm: dict[str, Any], gpu: str, architectures: str
) -> None:
    """The sources by their sha256, every patch, the variables with the card's code filled in; CUDA
    of nixpkgs."""
    recipe = find_recipe("vllm")
    made = vllm[gpu]["wheel"]
    script = made["buildCommand"]
    sdist = recipe.sdist
    assert made["src"] == {
        "pname": sdist.package,
        "version": sdist.version,
        "sha256": sdist.sha256,
    }
    for name, text in recipe.environment.items():
        assert made[name] == text.format(architectures=architectures, build="build-temp")
    for setting in recipe.settings.values():
        assert setting.format(architectures=architectures, build="build-temp") in script
    folder = Path(catalog.DATA).parents[1] / "patches" / "vllm" / recipe.version
    for patch in folder.iterdir():
        assert f"{patch.name} " in script or f"{patch.name};" in script
    assert "cuda-12.6" in made["CUDA_HOME"]
    assert made["CUDAHOSTCXX"] == "/gcc-for-cuda-12.6/bin/c++"
    assert made["requiredSystemFeatures"] == ["big-parallel"]


def test_vllm_for_two_capabilities_in_one_machine(outputs: Outputs) -> None:
    found = outputs.evaluate(
        """
        let inherit (flake.lib.packagesFor [ "p40" "p100" ]) vllm; in
        vllm.wheel.recorded.CUDAARCHS
        """
    )
    assert found == "60-real;61-real"


def test_vllm_has_the_wheels_of_its_lock(vllm: dict[str, Any]) -> None:
    """And the compiled one. Ray lies beside them for several machines, and behind them."""
    found = vllm["p40"]
    lock = {
        file.name
        for package in load_lock("vllm-0.14.0").packages
        for file in package.files
        if found["python"] in file.pythons
    }
    patched_files = {one["file"].replace("+legacy.1", "") for one in found["files"]}
    assert patched_files - lock == {"vllm-0.14.0-cp38-abi3-linux_x86_64.whl"}
    assert lock <= patched_files
    changed = {one["requirement"] for one in found["files"] if "+" in one["requirement"]}
    assert changed == {"torch==2.7.1+legacy.1", "triton==3.3.1+legacy.1"}
    assert "beside.pth" not in found["script"]
    site = f"lib/python{found['python']}/site-packages"
    for package in ("ray", "click"):
        assert f'echo {package}/{site} >> "$out/{site}/beside.pth"\n' in found["ray"]


@pytest.fixture(scope="session")
def wheels(outputs: Outputs) -> dict[str, list[dict[str, Any]]]:
    """What is asked of PyPI for each card: the arguments of fetchPypi, or a patched wheel."""
    found: dict[str, list[dict[str, Any]]] = outputs.evaluate(
        """
        let
          packages = flake.packages.x86_64-linux;
          wheels = builtins.filter (name: builtins.match "wheels-.*" name != null)
            (builtins.attrNames packages);
          brief = one: { inherit (one) file; inherit (one.path) recorded; };
        in
        builtins.listToAttrs (map (name: {
          inherit name;
          value = map brief packages.${name}.files;
        }) wheels)
        """
    )
    return found


@pytest.mark.parametrize("gpu", ONE_OF_EACH, ids=lambda gpu: gpu.name)
def test_wheels_are_those_of_the_lock(wheels: dict[str, list[dict[str, Any]]], gpu: Gpu) -> None:
    stack = stack_of(gpu, "torch")
    assert stack is not None
    python = stack.facts.pythons[0]
    lock = {
        file.name: file.sha256
        for package in load_lock(stack.facts.lock).packages
        for file in package.files
        if python in file.pythons
    }
    results = {
        wheel.file: wheel.result
        for row in patched()
        if row.package in stack.facts.patched
        for wheel in row.wheels
    }
    seen = set()
    for one in wheels[f"wheels-{gpu.name}"]:
        made = one["recorded"]
        if "script" in made:  # the patched one
            source = one["file"].replace("+legacy.1", "")
            assert f"{results[source]}  {one['file']}" in made["script"]
            seen.add(source)
            continue
        assert made["format"] == "wheel" and made["dist"] == made["python"]
        tags = f"{made['python']}-{made['abi']}-{made['platform']}"
        assert one["file"] == f"{made['pname']}-{made['version']}-{tags}.whl"
        assert made["sha256"] == lock[one["file"]]
        seen.add(one["file"])
    assert seen == set(lock)
    changed = [one for one in wheels[f"wheels-{gpu.name}"] if "script" in one["recorded"]]
    assert len(changed) == len(stack.facts.patched)


def test_cards_of_one_capability_share_their_packages(outputs: Outputs) -> None:
    same = outputs.evaluate(
        """
        let packages = flake.packages.x86_64-linux; in
        map (name: packages."${name}-p40".outPath == packages."${name}-gtx1080ti".outPath)
          [ "wheels" "torch" "triton" "llama-cpp" "ollama" ]
        """
    )
    assert same == [True] * 5


def test_packages_for_cards_together(outputs: Outputs) -> None:
    """A P100 beside a P40: code for both. A K80 beside a P40: the K80's CUDA."""
    found = outputs.evaluate(
        """
        map (gpus:
          let cuda = (flake.lib.packagesFor gpus).llama-cpp.recorded.cudaPackages; in
          [ cuda.config.cudaCapabilities cuda.cudaMajorMinorVersion ])
          [ [ "p40" "p100" ] [ "p40" "k80" ] [ "p40" "p4" ] ]
        """
    )
    assert found == [[["6.0", "6.1"], "12.6"], [["3.7", "6.1"], "11.8"], [["6.1"], "12.6"]]


@pytest.mark.parametrize(
    ("gpus", "engine"),
    [
        (["k80"], "ollama"),
        (["gtx750ti"], "llama-cpp"),
        (["p40", "rtx5090"], "ollama"),
        (["m40"], "vllm"),
        (["v100"], "vllm"),
    ],
)
def test_a_refusal_has_the_words_of_the_resolver(
    outputs: Outputs, gpus: list[str], engine: str
) -> None:
    names = " ".join(f'"{name}"' for name in gpus)
    said = outputs.fails(f"(flake.lib.packagesFor [ {names} ]).{engine}.name")
    cards = [catalog.find_gpu(name) for name in gpus]
    found = resolve(cards, catalog.find_engine(engine))
    if not isinstance(found, Stack) and found.rule == "engine-not-packaged" and len(gpus) > 1:
        found = resolve(cards, catalog.find_engine("torch"))
    assert not isinstance(found, Stack)
    for sentence in found.because:
        assert sentence in said


def test_images(packages: Packages) -> None:
    for name, image in packages.items():
        if not name.startswith("image-"):
            continue
        config = image["config"]
        assert config["User"] == "65534:65534"
        assert config["Healthcheck"]["Test"][0] == "CMD" and len(config["Healthcheck"]["Test"]) > 2
        labels = config["Labels"]
        assert name == f"image-{labels['dev.legacy-cuda.gpu']}-{labels['dev.legacy-cuda.engine']}"
        gpu = catalog.find_gpu(labels["dev.legacy-cuda.gpu"])
        assert labels["dev.legacy-cuda.capability"] == str(gpu.capability)
        assert gpu.product in labels["org.opencontainers.image.title"]
        ports = {
            "torch": {},
            "llama-cpp": {"8080/tcp": {}},
            "ollama": {"11434/tcp": {}},
            "vllm": {"8000/tcp": {}},
        }
        assert config["ExposedPorts"] == ports[labels["dev.legacy-cuda.engine"]]


def test_triton_in_an_image_is_linked_without_the_driver(packages: Packages) -> None:
    """Its wrapper's folder is NixOS's, which a container has not."""
    folders = {}
    for name, image in packages.items():
        if name.startswith("image-"):
            variables = dict(line.split("=", 1) for line in image["config"]["Env"])
            folders[name.removeprefix("image-")] = variables.get("TRITON_LIBCUDA_PATH")
    assert folders["p40-torch"] == folders["p40-vllm"] == "/cuda_cudart-stubs-12.6/lib/stubs"
    assert folders["v100-torch"] == "/cuda_cudart-stubs-12.8/lib/stubs"
    # no Triton has code for the one, and the others have no Triton
    assert {folders[name] for name in ("k80-torch", "p40-ollama", "p40-llama-cpp")} == {None}
    # what the image says wins over what the wrapper of the wheels says
    assert "--set-default TRITON_LIBCUDA_PATH " in packages["wheels-p40"]["script"]


def test_compose_files(outputs: Outputs, packages: Packages) -> None:
    """Beside each image: its name, its ports on loopback, the cards."""
    files = outputs.evaluate(
        """
        let packages = flake.packages.x86_64-linux; in
        builtins.mapAttrs (_: image: image.compose.recorded.value)
          {
            inherit (packages) image-p40-ollama image-k80-llama-cpp image-v100-torch image-p40-vllm;
          }
        """
    )
    for image, file in files.items():
        _, gpu, engine = image.split("-", 2)
        assert file["name"] == f"legacy-cuda-{gpu}"
        service = file["services"][engine]
        made = packages[image]
        assert service["image"] == f"{made['name']}:{made['tag']}"
        assert [port.rsplit(":")[-1] + "/tcp" for port in service["ports"]] == list(
            made["config"]["ExposedPorts"]
        )
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        if engine == "torch":  # a Python to type into: it ends when nobody does
            assert service["restart"] == "no"
            assert service["stdin_open"] is True and service["tty"] is True
        else:
            assert service["restart"] == "unless-stopped"
            assert not {"stdin_open", "tty"} & set(service)
        assert {volume.split(":")[0] for volume in service["volumes"]} == set(file["volumes"])


# The scripts that make packages, run by bash ------------------------------------------------------


def tiny_wheel(path: Path, module: str) -> None:
    """A wheel with one module, and a program that says which python runs it."""
    name, version = path.name.split("-")[:2]
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{module}.py", "def main():\n    import sys; print(sys.executable)\n")
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/entry_points.txt", f"[console_scripts]\n{module}={module}:main\n")
        archive.writestr(f"{info}/RECORD", "")


# What nixpkgs' makeWrapper does with the options that are used here.
MAKE_WRAPPER = r"""
makeWrapper() {
  local program=$1 wrapper=$2
  shift 2
  {
    echo '#!/bin/bash'
    while [ $# -gt 0 ]; do
      case $1 in
        --suffix) echo "export $2=\"\${$2:+\$$2$3}$4\""; shift 4 ;;
        --set-default) echo "export $2=\"\${$2-$3}\""; shift 3 ;;
        *) echo "unknown: $1" >&2; exit 1 ;;
      esac
    done
    echo "exec $program \"\$@\""
  } > "$wrapper"
  chmod +x "$wrapper"
}
"""


def bash(script: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    programs = f"{folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env={"PATH": programs, "TMPDIR": str(folder), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_script_that_installs_wheels(outputs: Outputs, tmp_path: Path) -> None:
    """uv makes the environment from two small wheels; its programs run with the libraries."""
    assert shutil.which("uv"), "uv is a dependency of legacy-cuda"
    for module in ("torch", "other"):
        tiny_wheel(tmp_path / f"{module}-1.0-py3-none-any.whl", module)
    # as they are called in a store
    stored = tmp_path / "stored"
    stored.mkdir()
    wheels = " ".join(
        f"""{{ name = "{module}"; version = "1.0"; file = "{module}-1.0-py3-none-any.whl";
              source = {{ pname = "{module}"; version = "1.0"; }}; }}"""
        for module in ("torch", "other")
    )
    made = outputs.evaluate(
        f"""
        let
          pkgs = import flake.nixpkgs {{
            system = "x86_64-linux";
            config.allowUnfree = true;
          }};
          python = {{
            type = "derivation";
            outPath = {json.dumps(sys.prefix)};
            pname = "python3";
            meta = {{ }};
          }};
          package = pkgs.callPackage (nix + "/../pkgs/wheels/package.nix") {{
            inherit python;
            legacy-cuda = null;
            stack = flake.lib.stackFor.p40;
            wheels = [ {wheels} ];
            patched = [ ];
            gpu = "p40";
          }};
        in
        {{
          inherit (package.recorded) script;
          inherit (package.recorded.attributes) libraries;
          paths = map (one: "${{one.path}}") package.files;
        }}
        """
    )
    script = made["script"].replace(f"{sys.prefix}/bin/python3", sys.executable)
    for path, module in zip(made["paths"], ("torch", "other"), strict=True):
        target = stored / f"0c0qanwxpj3yns43njflz5bgpwd10f2m-{module}-1.0-py3-none-any.whl"
        shutil.copy(tmp_path / f"{module}-1.0-py3-none-any.whl", target)
        script = script.replace(path, str(target))
    out = tmp_path / "out"
    done = bash(MAKE_WRAPPER + script, tmp_path, out=str(out), libraries=made["libraries"])
    assert done.returncode == 0, done.stderr
    installed = [path.name for path in out.rglob("*")]
    assert "direct_url.json" not in installed  # it would name the folder of the build
    (compiled,) = out.rglob("torch.*.pyc")
    assert compiled.read_bytes()[4] == 1  # PEP 552: by hash, and not checked
    assert without_store(made["libraries"]) == "/run/opengl-driver/lib:gcc-lib/lib:zlib/lib"
    said = bash(
        f'{out}/bin/other; {out}/bin/python -c "import os, sys, torch;'
        "print(sys.prefix, os.environ['LD_LIBRARY_PATH'], os.environ['CUDA_DEVICE_ORDER']);"
        "print(*[os.environ[f'TRITON_{name}_PATH'] for name in ('LIBCUDA', 'PTXAS')]);"
        "print(os.environ['CC'])\"",
        tmp_path,
        LD_LIBRARY_PATH="/mine",
        CC="/mine/cc",
    )
    assert said.stdout.splitlines() == [
        f"{out}/bin/.python-unwrapped",
        f"{out} /mine:{made['libraries']} PCI_BUS_ID",
        "/run/opengl-driver/lib /cuda_nvcc-12.9/bin/ptxas",
        "/mine/cc",
    ], said.stderr


@pytest.mark.parametrize("result", ["as recorded", "other"])
def test_the_script_that_patches_a_wheel(
    packages: Packages, outputs: Outputs, tmp_path: Path, result: str
) -> None:
    script = outputs.evaluate(
        """
        (builtins.head (builtins.filter (one: one.path.recorded ? script)
          flake.packages.x86_64-linux.wheels-v100.files)).path.recorded.script
        """
    )
    name = next(line.split()[1] for line in script.splitlines() if line.startswith("mv "))
    source = next(line.split()[1] for line in script.splitlines() if line.startswith("cp "))
    (tmp_path / "published").write_text("published")
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "legacy-cuda"
    command.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/said\necho made > "{name}"\n')
    command.chmod(0o755)
    recorded = next(line for line in script.splitlines() if line.startswith("echo ")).split('"')[1]
    sha256 = hashlib.sha256(b"made\n").hexdigest()
    script = script.replace(source, str(tmp_path / "published"))
    if result == "as recorded":
        script = script.replace(recorded.split()[0], sha256)
    done = bash(script, tmp_path, out=str(tmp_path / "out"))
    said = (tmp_path / "said").read_text()
    published = name.replace("+legacy.1", "")
    assert said.startswith("build triton --version 3.6.0 --for ")
    assert said.endswith(f"--python 3.12 --wheel {published} --output .\n")
    if result == "as recorded":
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "out").read_text() == "made\n"
    else:
        assert done.returncode != 0
        assert not (tmp_path / "out").exists()
