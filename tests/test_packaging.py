"""What is installed, and the commands that the README promises."""

import importlib
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parent.parent
LOCKS = ("cpu", "cuda", "dev", "bench")
PEERS = ("peers", "peers-ray")
PIN = re.compile(r"^(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>\S+)", re.MULTILINE)


def lock_text(name: str) -> str:
    return (ROOT / "requirements" / f"{name}.txt").read_text()


def pins(name: str) -> dict[str, Version]:
    return {match["name"]: Version(match["version"]) for match in PIN.finditer(lock_text(name))}


def project() -> dict[str, object]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("name", [*LOCKS, *PEERS])
def test_every_requirement_is_an_exact_version_with_hashes(name: str) -> None:
    entries = re.split(r"\n(?=[A-Za-z0-9])", re.sub(r"^#.*\n", "", lock_text(name), flags=re.MULTILINE).strip())
    assert len(entries) > 10
    assert [entry.splitlines()[0] for entry in entries if not PIN.match(entry) or "--hash=sha256:" not in entry] == []


@pytest.mark.parametrize("name", [*LOCKS, *PEERS, "overrides"])
def test_requirements_name_no_host_no_index_and_no_folder_of_one_machine(name: str) -> None:
    assert re.findall(r".*(?:://|^-i |--index-url|--find-links|^-f |file:|@ ).*", lock_text(name), re.MULTILINE) == []


@pytest.mark.parametrize("name", LOCKS)
def test_what_a_text_server_does_not_need_is_not_installed(name: str) -> None:
    """Nor is Hugging Face's package `kernels`, which would share our import name."""
    assert pins(name).keys().isdisjoint({"torchvision", "torchaudio", "torchcodec", "kernels"})


def test_the_cpu_set_holds_the_cpu_build_of_torch_and_the_cuda_set_the_plain_one() -> None:
    assert str(pins("cpu")["torch"]) == "2.13.0+cpu"
    assert str(pins("cuda")["torch"]) == "2.13.0"


def test_both_sets_and_the_tools_agree_on_every_version_they_share() -> None:
    """So that what passed on a CPU is what runs beside a GPU."""
    cpu, cuda, dev, bench = (pins(name) for name in LOCKS)
    disagreeing = {name for name in cpu.keys() & cuda.keys() if cpu[name].public != cuda[name].public}
    disagreeing |= {name for name in dev.keys() & cpu.keys() if dev[name] != cpu[name]}
    disagreeing |= {name for name in dev.keys() & cuda.keys() if dev[name] != cuda[name]}
    disagreeing |= {name for name in bench.keys() & cpu.keys() if bench[name].public != cpu[name].public}
    assert disagreeing == set()


def test_ray_serve_llm_runs_on_the_packages_of_the_cpu_set() -> None:
    """Both files are installed together."""
    cpu, beside = pins("cpu"), pins("peers-ray")
    assert {name for name in cpu.keys() & beside.keys() if cpu[name] != beside[name]} == set()


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_the_locks_satisfy_pyproject(name: str) -> None:
    """A dependency added to pyproject.toml without running scripts/lock.sh fails here."""
    metadata = project()
    wanted = [Requirement(line) for line in [*metadata["dependencies"], *metadata["optional-dependencies"][name]]]
    locked = pins(name)
    assert [str(need) for need in wanted if not need.specifier.contains(locked.get(need.name, Version("0")))] == []


def test_our_version_is_outside_the_window_in_which_transformers_mistakes_our_kernels_package() -> None:
    assert not Version("0.18.2") <= Version(str(project()["version"])) < Version("0.19")


@pytest.mark.parametrize("package", ["kernels", "serving", "models", "benchmarks"])
def test_a_top_level_package_runs_nothing_when_it_is_imported(package: str) -> None:
    assert (ROOT / package / "__init__.py").read_text() == ""


@pytest.mark.engine
def test_transformers_does_not_take_our_kernels_package_for_hugging_faces() -> None:
    code = "from transformers.utils import is_kernels_available; print(is_kernels_available())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


def test_the_installed_package_is_this_checkout() -> None:
    assert importlib.metadata.version("ballast-inference") == project()["version"]
    assert Path(str(importlib.import_module("serving").__file__)).parent == ROOT / "serving"


def make(*arguments: str) -> str:
    """What ``make`` prints; an outer make's flags are kept away from it. Raises CalledProcessError when it fails."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(
        ["make", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.parametrize("target", ["setup", "setup-peers", "serve", "test", "lint", "clean"])
def test_help_lists_the_commands_of_the_readme(target: str) -> None:
    assert f"make {target} " in make()


def test_make_serve_passes_config_and_port_on() -> None:
    assert 'ballast up --config "my.yaml" --port "9000"' in make("--dry-run", "serve", "CONFIG=my.yaml", "PORT=9000")


def test_ci_runs_the_readmes_test_command_and_every_lint() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert [target for target in ("test", "style", "types", "imports", "image") if f"make {target}" not in script] == []
