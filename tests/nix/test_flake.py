"""The flake against Python: the same data read, the same stack or refusal for every GPU.

Needs Nix (2.8 or newer), but neither a daemon nor a network nor nixpkgs: all that is evaluated here
is our own, with a store in a temporary folder. Nothing is built. Where Nix is missing, the tests
fail and say how to get it.
"""

from __future__ import annotations

import itertools
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from legacy_cuda import catalog
from legacy_cuda.catalog import Gpu
from legacy_cuda.catalog.recipes import recipes
from legacy_cuda.resolve import Stack, resolve
from tests.nix.nixrun import INPUTS, ROOT, Nix, Outputs, as_nix, without_store

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DATA = Path("python/src/legacy_cuda/catalog/data")

OF_EACH_TYPE = """\
lib: builtins.groupBy (name: builtins.typeOf lib.${name}) (builtins.attrNames lib)
"""


def answer(gpus: tuple[Gpu, ...], engine: str) -> dict[str, Any]:
    """Python's answer in the form of Nix's."""
    found = resolve(gpus, catalog.find_engine(engine))
    names = [gpu.name for gpu in found.gpus]
    if not isinstance(found, Stack):
        because = list(found.because)
        return {
            "refusal": {"rule": found.rule, "engine": engine, "gpus": names, "because": because}
        }
    branch = found.driver.branch
    return {
        "gpus": names,
        "engine": engine,
        "stack": found.facts.name,
        "lock": found.facts.lock,
        "cuda": "{}.{}".format(*found.facts.cuda),
        "toolkit": "{}.{}".format(*found.toolkit.version),
        "pythons": list(found.facts.pythons),
        "patched": list(found.facts.patched),
        "compiled": list(found.facts.compiled),
        "gccMax": found.toolkit.gcc_max,
        "driver": {
            "branch": branch.branch,
            "latest": branch.latest,
            "flavour": found.driver.flavour,
            "nixosAttribute": branch.nixos_attribute,
        },
    }


def nix_answers(
    nix: Nix, folder: Path, questions: list[tuple[str, tuple[Gpu, ...]]], change: str = "{ }"
) -> list[dict[str, Any]]:
    """Nix's answers, in one evaluation, with a catalog changed by a Nix expression."""
    asked = folder / "questions.json"
    asked.write_text(
        json.dumps([[engine, [gpu.name for gpu in gpus]] for engine, gpus in questions])
    )
    return nix.evaluate(
        f"""
        let
          catalog = import (nix + "/catalog.nix");
          stacks = import (nix + "/stacks.nix") (catalog // {change});
          ask = question: stacks.resolveFor (builtins.elemAt question 0)
            (builtins.elemAt question 1);
        in
        map ask (builtins.fromJSON (builtins.readFile {as_nix(asked)}))
        """
    )


def compare(
    nix: Nix, folder: Path, questions: list[tuple[str, tuple[Gpu, ...]]], change: str = "{ }"
) -> set[str]:
    """Hold Nix's answers against Python's; the stacks and the rules that came up."""
    answers = nix_answers(nix, folder, questions, change)
    assert len(answers) == len(questions)
    differences = [
        (engine, [gpu.name for gpu in gpus], found, expected)
        for (engine, gpus), found in zip(questions, answers, strict=True)
        if found != (expected := answer(gpus, engine))
    ]
    assert not differences, f"{len(differences)} differ, the first (Nix, Python): {differences[0]}"
    return {found.get("stack") or found["refusal"]["rule"] for found in answers}


def one_of_each_capability() -> list[Gpu]:
    return list({gpu.capability: gpu for gpu in catalog.gpus()}.values())


def sets_of(gpus: list[Gpu], largest: int) -> Iterator[tuple[Gpu, ...]]:
    for size in range(1, largest + 1):
        yield from itertools.combinations_with_replacement(gpus, size)


def test_all_pairs_of_cards(nix: Nix, tmp_path: Path) -> None:
    questions = [("torch", gpus) for gpus in sets_of(list(catalog.gpus()), 2)]
    cards = len(catalog.gpus())
    assert len(questions) == cards + cards * (cards + 1) // 2
    seen = compare(nix, tmp_path, questions)
    assert {stack.name for stack in catalog.stacks() if stack.engine == "torch"} <= seen
    assert {"not-legacy", "engine-refused", "driver-branch", "kernel-module-flavour"} <= seen


def test_three_and_four_capabilities_in_one_machine(nix: Nix, tmp_path: Path) -> None:
    sets = itertools.chain.from_iterable(
        itertools.combinations(one_of_each_capability(), size) for size in (3, 4)
    )
    # Given newest first: the order of the arguments must not matter.
    compare(nix, tmp_path, [("torch", tuple(reversed(gpus))) for gpus in sets])


def test_every_engine(nix: Nix, tmp_path: Path) -> None:
    questions = [
        (engine.name, gpus)
        for engine in catalog.engines()
        for gpus in sets_of(one_of_each_capability(), 2)
    ]
    seen = compare(nix, tmp_path, questions)
    assert {stack.name for stack in catalog.stacks()} | {"engine-not-packaged"} <= seen


def test_every_stack_alone(nix: Nix, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With fewer stacks, coverage decides more often."""
    for stack in catalog.stacks():
        questions = [(stack.engine, gpus) for gpus in sets_of(one_of_each_capability(), 2)]
        monkeypatch.setattr(catalog, "stacks", lambda only=stack: (only,))
        change = f'{{ stackList = [ catalog.stacks."{stack.name}" ]; }}'
        assert {stack.name, "coverage"} <= compare(nix, tmp_path, questions, change)


def test_the_driver_limits_the_stack(
    nix: Nix, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With stacks that cover everything, only the driver's age decides between them."""
    everything = tuple(catalog.capabilities())
    stacks = tuple(replace(stack, covers=everything, jit_driver=()) for stack in catalog.stacks())
    monkeypatch.setattr(catalog, "stacks", lambda: stacks)
    cover = "stack // { covers = builtins.attrNames catalog.capabilities; jit_driver = { }; }"
    questions = [("torch", gpus) for gpus in sets_of(one_of_each_capability(), 2)]
    seen = compare(
        nix, tmp_path, questions, f"{{ stackList = map (stack: {cover}) catalog.stackList; }}"
    )
    assert {"kepler", "volta"} <= seen
    assert "coverage" not in seen

    monkeypatch.setattr(catalog, "stacks", lambda: stacks[1:])
    change = f"{{ stackList = map (stack: {cover}) (builtins.tail catalog.stackList); }}"
    assert "coverage" in compare(nix, tmp_path, questions, change)


def test_the_driver_has_to_compile_the_ptx(nix: Nix, tmp_path: Path) -> None:
    """The K80's last driver runs CUDA 11.7, and is too old for the PTX that Ampere needs there."""
    questions = [("torch", [catalog.find_gpu(name) for name in ("k80", "rtx3090")])]
    assert compare(nix, tmp_path, questions) == {"coverage"}


def test_every_spelling_of_a_card(nix: Nix, tmp_path: Path) -> None:
    texts = {
        text
        for gpu in catalog.gpus()
        for name in (gpu.name, gpu.product, *gpu.aliases, *gpu.pci_ids)
        for text in (name, name.upper(), f"NVIDIA {name}")
        if ":" not in text or " " not in text
    }
    asked = tmp_path / "texts.json"
    asked.write_text(json.dumps(sorted(texts)))
    found = nix.evaluate(
        f"""
        map (text: ((import (nix + "/catalog.nix")).findGpu text).name)
          (builtins.fromJSON (builtins.readFile {as_nix(asked)}))
        """
    )
    assert dict(zip(sorted(texts), found, strict=True)) == {
        text: catalog.find_gpu(text).name for text in texts
    }


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ('resolve [ "p41" ]', 'no GPU called "p41"'),
        ("resolve [ ]", "at least one GPU"),
        ('resolveFor "torhc" [ "p40" ]', 'no engine "torhc"'),
    ],
)
def test_bad_arguments_are_named(nix: Nix, call: str, message: str) -> None:
    done = nix.instantiate(f'(import (nix + "/stacks.nix") (import (nix + "/catalog.nix"))).{call}')
    assert done.returncode != 0
    assert message in done.stderr


def same(nix_value: Any, python_value: Any) -> bool:
    """Equal, but that Nix writes floats with six digits."""
    if isinstance(python_value, float):
        return math.isclose(nix_value, python_value, rel_tol=1e-5)
    if isinstance(python_value, dict):
        return nix_value.keys() == python_value.keys() and all(
            same(nix_value[key], value) for key, value in python_value.items()
        )
    if isinstance(python_value, list):
        return len(nix_value) == len(python_value) and all(map(same, nix_value, python_value))
    return type(nix_value) is type(python_value) and nix_value == python_value


def test_both_read_the_same_from_every_file(nix: Nix) -> None:
    files = sorted(file.relative_to(ROOT / DATA) for file in (ROOT / DATA).rglob("*.toml"))
    assert files
    reads = " ".join(
        f"(builtins.fromTOML (builtins.readFile {as_nix(ROOT / DATA / file)}))" for file in files
    )
    for file, found in zip(files, nix.evaluate(f"[ {reads} ]"), strict=True):
        with (catalog.DATA / file).open("rb") as stream:
            assert same(found, tomllib.load(stream)), f"{file}: Nix and Python read it differently"


def test_every_lock_can_be_had(nix: Nix) -> None:
    names = nix.evaluate(
        'builtins.mapAttrs (_: lock: lock.name) (import (nix + "/catalog.nix")).locks'
    )
    locks = {stack.lock for stack in catalog.stacks()} | {recipe.lock for recipe in recipes()}
    assert names == {lock: lock for lock in locks}


def test_lib_needs_no_input(nix: Nix, flake: str) -> None:
    """Offline, with an empty cache: evaluation would fail if it tried to fetch nixpkgs."""
    offered = sorted(
        gpu.name
        for gpu in catalog.gpus()
        if isinstance(resolve([gpu], catalog.find_engine("torch")), Stack)
    )
    for attribute, expected in {
        "devShellNames": offered,
        "stackFor.p40.lock": "torch-2.7.1",
        "gpus.p40.capability": "6.1",
        "stacks.kepler.lock": "torch-2.0.1",
    }.items():
        found = nix.flake("eval", "--json", f"{flake}#lib.{attribute}", "--no-update-lock-file")
        assert json.loads(found) == expected
    types = nix.flake("eval", "--json", f"{flake}#lib", "--apply", OF_EACH_TYPE)
    assert json.loads(types) == {
        "lambda": ["findGpu", "mkDevShells", "packagesFor", "resolve", "resolveFor"],
        "list": ["devShellNames"],
        "set": ["capabilities", "engines", "gpus", "locks", "stackFor", "stacks", "toolkits"],
    }
    found = nix.flake(
        "eval", "--json", f"{flake}#lib.resolve", "--apply", 'f: (f [ "p40" "k80" ]).stack'
    )
    assert json.loads(found) == "kepler"


def test_legacy_cuda_in_a_dev_shell(outputs: Outputs) -> None:
    """It starts the package's program with all of its arguments; nothing else comes with it."""
    program = without_store(
        outputs.evaluate(
            """
            (builtins.elemAt flake.devShells.x86_64-linux.p40.recorded.packages 2).recorded
            """
        )
    )
    assert program == {"name": "legacy-cuda", "text": 'exec legacy-cuda/bin/legacy-cuda "$@"'}


def test_dev_shells(outputs: Outputs) -> None:
    """What mkShell is called with."""
    shells = without_store(
        outputs.evaluate(
            "builtins.mapAttrs (_: shell: shell.recorded) flake.devShells.x86_64-linux"
        )
    )
    listed = shells.pop("default")["shellHook"]
    for gpu in catalog.gpus():
        found = answer((gpu,), "torch")
        assert (gpu.name in shells) == ("stack" in found) == (f"  {gpu.name}: " in listed)
        if gpu.name in shells:
            python = f"python{found['pythons'][0]}"
            triton = {
                "CC": "gcc-wrapper/bin/cc",
                "TRITON_LIBCUDA_PATH": "/run/opengl-driver/lib",
                "TRITON_PTXAS_PATH": f"/cuda_nvcc-{found['toolkit']}/bin/ptxas",
            }
            assert shells[gpu.name] == {
                "name": f"legacy-cuda-{gpu.name}",
                # not its package, whose Python would get into the stack's
                "packages": [python, "uv", "legacy-cuda"],
                "env": {
                    "LEGACY_CUDA_GPU": gpu.name,
                    "LEGACY_CUDA_STACK": found["stack"],
                    "UV_PYTHON": f"{python}/bin/python3",
                    "UV_PYTHON_DOWNLOADS": "never",
                    "LD_LIBRARY_PATH": "/run/opengl-driver/lib:gcc-lib/lib:zlib/lib",
                    **(triton if "triton" in found["patched"] else {}),
                },
            }


def test_a_dev_shell_is_entered(nix: Nix, flake: str, stub: tuple[str, ...]) -> None:
    """``nix develop``, with the machine's bash. The programs in it are the stub's: nothing."""
    said = nix.flake(
        "develop", f"{flake}#p40", *stub, "--command", "bash", "-c", 'echo "$LEGACY_CUDA_STACK"'
    )
    assert said == "pascal\n"
    listed = nix.flake("develop", flake, *stub, "--command", "true")
    assert "  k80: kepler\n" in listed


@pytest.mark.parametrize(
    ("pythons", "chosen"), [(["3.10", "3.13"], "3.13"), (["3.10"], "3.10"), ([], None)]
)
def test_dev_shell_takes_a_python_that_nixpkgs_has(
    nix: Nix, pythons: list[str], chosen: str | None
) -> None:
    attributes = " ".join(f'python{text.replace(".", "")} = "{text}";' for text in pythons)
    done = nix.instantiate(
        f"""
        let
          stacks = import (nix + "/stacks.nix") (import (nix + "/catalog.nix"));
          pkgs = {{ {attributes} uv = "uv"; mkShell = arguments: arguments; }};
          shells = import (nix + "/shells.nix") {{ inherit (stacks) stackFor devShellNames; }} pkgs;
        in
        builtins.head shells.p40.packages
        """
    )
    if chosen is None:
        assert done.returncode != 0
        assert "has no Python of the stack pascal" in done.stderr
    else:
        assert json.loads(done.stdout) == chosen


def test_a_host_is_begun_from_a_template(
    nix: Nix, flake: str, stub: tuple[str, ...], tmp_path: Path
) -> None:
    """As docs/nix.md says: from a clone, which is locked by its commit; then it is evaluated."""
    clone, host = tmp_path / "clone", tmp_path / "host"
    shutil.copytree(flake.removeprefix("path:"), clone)
    host.mkdir()
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    for words in (("init", "--quiet"), ("add", "--all"), ("commit", "--quiet", "-m", "clone")):
        subprocess.run(["git", *identity, "-C", str(clone), *words], check=True)

    def run(*words: str) -> str:
        done = nix.run("nix", "--offline", *words, cwd=host)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("flake", "init", "--template", f"git+file://{clone}#p40")
    own = host / "flake.nix"
    own.write_text(own.read_text().replace("/srv/legacy-cuda", str(clone)))
    run("flake", "lock", f"path:{host}")
    locked = json.loads((host / "flake.lock").read_text())["nodes"]["legacy-cuda"]["locked"]
    assert len(locked["rev"]) == 40 and locked["url"] == f"file://{clone}"
    overridden = [f"legacy-cuda/{word}" if word in INPUTS else word for word in stub]
    port = f"path:{host}#nixosConfigurations.p40.config.services.ollama.port"
    assert run("eval", port, *overridden, "--no-write-lock-file") == "11434\n"


def test_flake_check_and_show(nix: Nix, flake: str, stub: tuple[str, ...]) -> None:
    nix.flake("flake", "check", "--no-build", flake, *stub)
    shown = json.loads(nix.flake("flake", "show", "--json", flake, *stub))
    assert shown["devShells"]["x86_64-linux"]["p40"]["name"] == "legacy-cuda-p40"
