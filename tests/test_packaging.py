"""What is installed: locks that hold for every supported Python, and ranges that the locks lie in."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = PROJECT["project"]["optional-dependencies"]
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
MACHINES = ("x86_64", "aarch64")
# What a group of machines installs, and the file that pins it.
LOCKED = {
    "all.txt": [*EXTRAS, *PROJECT["dependency-groups"]],
    "board.txt": ["flight", "crypto"],
}


def pins(lock: str) -> list[Requirement]:
    text = (ROOT / "locks" / lock).read_text(encoding="utf-8")
    return [Requirement(line.rstrip("\\ ")) for line in text.splitlines() if re.match(r"[a-z0-9]", line)]


def pinned(lock: str, python: str, machine: str) -> dict[str, str]:
    """Version by name of what one computer installs from a lock."""
    where = environment(python, machine)
    chosen = [pin for pin in pins(lock) if pin.marker is None or pin.marker.evaluate(where)]
    versions = {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in chosen}
    assert len(versions) == len(chosen), "a package is pinned twice"
    return versions


def environment(python: str, machine: str) -> dict[str, str]:
    return {
        "python_version": python, "python_full_version": f"{python}.4", "platform_machine": machine,
        "sys_platform": "linux", "platform_system": "Linux", "os_name": "posix",
        "implementation_name": "cpython", "platform_python_implementation": "CPython",
    }  # fmt: skip


def declared(lock: str, python: str, machine: str) -> Iterator[Requirement]:
    """What pyproject.toml asks for where a lock is used, but torch, which no lock holds."""
    lists = [PROJECT["project"]["dependencies"]]
    lists += [EXTRAS.get(name) or PROJECT["dependency-groups"][name] for name in LOCKED[lock]]
    for text in (text for each in lists for text in each):
        need = Requirement(text)
        if need.name in ("torch", "spacedml-edge"):
            continue
        if need.marker is None or need.marker.evaluate(environment(python, machine)):
            yield need


@pytest.mark.parametrize("lock", LOCKED)
@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("machine", MACHINES)
def test_the_lock_pins_what_the_project_asks_for(lock: str, python: str, machine: str) -> None:
    versions = pinned(lock, python, machine)
    for need in declared(lock, python, machine):
        assert need.specifier.contains(versions[canonicalize_name(need.name)]), f"{need}: run make lock"


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("machine", MACHINES)
def test_a_board_installs_the_versions_that_were_tested(python: str, machine: str) -> None:
    board, tested = pinned("board.txt", python, machine), pinned("all.txt", python, machine)
    assert {name: tested.get(name) for name in board} == board
    assert {"numpy", "onnxruntime", "cryptography"} <= set(board)
    assert {"rich", "scikit-learn", "pytest", "onnx"}.isdisjoint(board)


def test_the_guide_tells_the_versions_that_were_tested() -> None:
    text = (ROOT / "docs" / "reference" / "versions.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([a-z-]+) \| ([\d.]+) \| ([\d., ]+) \|$", text, re.MULTILINE)
    needs = list(declared("all.txt", "3.11", "x86_64"))
    assert {name for name, _, _ in rows} >= {need.name for need in declared("board.txt", "3.11", "x86_64")}
    for name, least, locked in rows:
        assert {f">={least}"} == {str(need.specifier) for need in needs if need.name == name}, name
        versions = {next(iter(pin.specifier)).version for pin in pins("all.txt") if pin.name == name}
        assert set(locked.split(", ")) == versions, (
            f"{name}: docs/reference/versions.md says otherwise than the lock"
        )


@pytest.mark.parametrize("lock", LOCKED)
def test_a_lock_names_hashes_and_no_place(lock: str) -> None:
    text = (ROOT / "locks" / lock).read_text(encoding="utf-8")
    assert "://" not in text
    assert not re.search(r"^-|\s@\s|(^|\s)/", text, re.MULTILINE), "an option or a path"
    blocks = re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE)[1:]
    assert [block for block in blocks if not re.search(r"--hash=sha256:[0-9a-f]{64}", block)] == []


def test_no_lock_brings_cuda() -> None:
    for lock in LOCKED:
        names = {pin.name for pin in pins(lock)}
        assert {name for name in names if re.match("torch|nvidia|cuda|triton", name)} == set()


def test_the_lock_has_what_torch_needs_besides_itself() -> None:
    """The Makefile installs torch with --no-deps."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    versions = pinned("all.txt", python, "x86_64")
    needs = [Requirement(text) for text in importlib.metadata.requires("torch") or []]
    plain = [need for need in needs if need.marker is None or "extra" not in str(need.marker)]
    assert plain
    for need in plain:
        assert need.specifier.contains(versions[canonicalize_name(need.name)]), need


@pytest.mark.parametrize("python", PYTHONS)
def test_numpy_2_5_5_which_reserves_188_mib_is_not_for_arm(python: str) -> None:
    for lock in LOCKED:
        assert pinned(lock, python, "aarch64")["numpy"] != "2.5.5"
    for machine, admitted in (("aarch64", False), ("x86_64", True)):
        numpy = [need for need in declared("board.txt", python, machine) if need.name == "numpy"]
        assert [need.specifier.contains("2.5.5") for need in numpy] == [admitted]


@pytest.mark.parametrize("admitted", [False, True])
def test_a_32_bit_python_is_told_in_one_line_before_anything_is_compiled(
    admitted: bool, tmp_path: Path
) -> None:
    """The real build backend, on a Python that says it is 32-bit: pip asks it before all else."""
    pytest.importorskip("hatchling", reason="the build's backend is in the lock: make env")
    script = (
        f"import os, sys; sys.maxsize = 2**31 - 1; os.environ['SPACEDML_32BIT'] = '{int(admitted)}';"
        f"from hatchling.build import build_wheel; build_wheel({str(tmp_path)!r})"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == (0 if admitted else 1), done.stderr
    if not admitted:
        assert len(done.stderr.splitlines()) == 1
        assert "32-bit" in done.stderr
        assert "docs/howto/offline.md" in done.stderr
        assert list(tmp_path.iterdir()) == []
