"""What each install can do: every command answers, and what is missing is a line with its extra.

Packages are kept from real processes by an import hook; `make env` installs all of them.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from onboard.console.extras import BRINGS, CALLED
from tests.test_packaging import EXTRAS

ROOT = Path(__file__).parent.parent.parent.parent
INSTALLS = {  # by the extras that were named: what is there of all that any extra brings
    "": set[str](),
    "flight": {"onnxruntime", "safetensors"},
    "flight,crypto": {"onnxruntime", "safetensors", "cryptography"},
    "flight,pictures": {"onnxruntime", "safetensors", "PIL"},
    "ground": {"onnxruntime", "safetensors", "rich"},
    "sim": {"onnxruntime", "safetensors", "rich", "sklearn", "PIL", "matplotlib"},
}
PACKAGES = {package for packages in BRINGS.values() for package in packages}
BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Block())
"""
# Every --help and --version of the three programs, in one process: a JSON object of exit code and first line.
EVERY_HELP = """
import contextlib, io, json, sys, click
from firmware_sim.cli import main as sim
from groundstation.cli import main as ground
from onboard.cli import main as board
answers = {}
for program in (board, ground, sim):
    calls = [[command, "--help"] for command in program.commands] + [["--help"], ["--version"]]
    for call in calls:
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            try:
                program(call)
            except SystemExit as end:
                code = end.code
        answers[f"{program.name} {' '.join(call)}"] = code, (out.getvalue().splitlines() or [""])[0]
print(json.dumps(answers))
"""


def without(folder: Path, *packages: str) -> dict[str, str]:
    """The environment of a process that has not got these packages."""
    (folder / "sitecustomize.py").write_text(BLOCK.format(blocked=packages), encoding="utf-8")
    return environment(folder)


def environment(folder: Path) -> dict[str, str]:
    return {"PYTHONPATH": f"{folder}:{ROOT}", "PATH": "/usr/bin:/bin", "OPENBLAS_NUM_THREADS": "1"}


def program(env: dict[str, str], *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments], env=env, cwd=cwd, capture_output=True, text=True, timeout=60
    )


def assert_one_line(done: subprocess.CompletedProcess[str], line: str, code: int = 2) -> None:
    assert (done.returncode, done.stderr) == (code, line + "\n")


@pytest.fixture(scope="module")
def founded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("founded")
    node = "pi,link=bench-udp,port=udp://127.0.0.1:4870,board-port=udp://?bind=127.0.0.1:4870"
    done = program(environment(folder), "groundstation", "init", "mission", "--node", node, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "mission"


@pytest.fixture
def mission(founded: Path, tmp_path: Path) -> Path:
    """A mission of one board."""
    return shutil.copytree(founded, tmp_path / "mission")


@pytest.mark.parametrize("install", INSTALLS)
def test_every_program_and_command_says_what_it_is_for_on_every_install(install: str, tmp_path: Path) -> None:
    env = without(tmp_path, *(PACKAGES - INSTALLS[install]))
    done = subprocess.run(
        [sys.executable, "-c", EVERY_HELP], env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    assert len(answers) > 15
    for call, (code, line) in answers.items():
        assert code in (0, None), (call, line)
        assert re.match(r"Usage: |\S+, version ", line), (call, line)


@pytest.mark.parametrize(("install", "call", "missing"), [
    ("", "onboard run mission/boards/pi/node.toml", "onnxruntime is not installed: [flight]"),
    ("flight", "onboard infer a.png", "Pillow is not installed: [pictures]"),
    ("", "groundstation init another --node pi,port=/dev/ttyUSB0", "onnxruntime is not installed: [ground]"),
    ("", "groundstation serve mission", "onnxruntime is not installed: [ground]"),
    ("flight", "groundstation status mission", "rich is not installed: [ground]"),
    ("flight", "groundstation links mission --once", "rich is not installed: [ground]"),
    ("", "firmware-sim demo", "onnxruntime is not installed: [sim]"),
    ("flight", "firmware-sim demo --plain", "rich is not installed: [sim]"),
    ("ground", "firmware-sim demo", "matplotlib is not installed: [sim]"),
    ("ground", "firmware-sim fleet --data digits --json", "matplotlib is not installed: [sim]"),
    ("ground", "firmware-sim ring --data digits", "matplotlib is not installed: [sim]"),
    ("", "firmware-sim board mission/boards/pi/node.toml", "onnxruntime is not installed: [sim]"),
])  # fmt: skip
def test_a_command_that_needs_more_says_which_extra_before_anything_else(
    install: str, call: str, missing: str, mission: Path
) -> None:
    name, *arguments = call.split()
    env = without(mission.parent, *(PACKAGES - INSTALLS[install]))
    before = sorted(mission.parent.rglob("*"))
    done = program(env, name.replace("-", "_"), *arguments, cwd=mission.parent)
    line = re.sub(r"\[(\w+)\]", r"pip install 'spacedml-edge[\1]'", missing)
    assert_one_line(done, f"{name}: {line}")
    made = set(mission.parent.rglob("*")) - set(before)
    assert [path for path in made if path.name != "__pycache__" and path.suffix != ".pyc"] == []


def learn_digits(mission: Path) -> None:
    config = mission / "boards" / "pi" / "node.toml"
    text = config.read_text(encoding="utf-8")
    assert '"npz:data.npz"' in text
    config.write_text(text.replace('"npz:data.npz"', '"digits"'), encoding="utf-8")


def test_data_that_an_extra_reads_names_the_extra(mission: Path) -> None:
    learn_digits(mission)
    env = without(mission.parent, "sklearn", "PIL", "matplotlib")
    done = program(env, "onboard", "run", "mission/boards/pi/node.toml", cwd=mission.parent)
    assert done.returncode == 2
    assert done.stderr.endswith("scikit-learn is not installed: pip install 'spacedml-edge[sim]'\n")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(("package", "broken", "says"), [
    ("onnxruntime", "raise ImportError('libstdc++.so.6: version `GLIBCXX_3.4.30\\' not found')", "GLIBCXX"),
    ("onnxruntime", "raise OSError('libcudart.so.13: cannot open shared object file')", "libcudart.so.13"),
    ("onnxruntime", "import a_package_of_theirs", "No module named 'a_package_of_theirs'"),
    ("onnxruntime", "", "has no attribute 'get_available_providers'"),  # of two with this name, one removed
    ("sklearn", "raise ImportError('libgomp.so.1: no room in static TLS block')", "static TLS"),
])  # fmt: skip
def test_a_package_that_is_installed_and_broken_is_not_called_missing(
    package: str, broken: str, says: str, mission: Path
) -> None:
    """What a user meets with a wheel for another system, or with onnxruntime and onnxruntime-gpu at once."""
    there = mission.parent / "broken" / package
    there.mkdir(parents=True)
    (there / "__init__.py").write_text(broken, encoding="utf-8")
    if package == "sklearn":
        learn_digits(mission)
    env = environment(there.parent)
    done = program(env, "onboard", "doctor", "mission/boards/pi/node.toml", cwd=mission.parent)
    assert (done.returncode, done.stderr) == (1, "")
    line = next(line for line in done.stdout.splitlines() if says in line)
    assert line.startswith("FAIL")
    assert "installed but does not load" in line
    assert "not installed" not in line


def test_a_broken_package_that_a_screen_needs_is_one_line(mission: Path) -> None:
    there = mission.parent / "broken" / "rich"
    there.mkdir(parents=True)
    (there / "__init__.py").write_text("", encoding="utf-8")
    done = program(environment(there.parent), "groundstation", "links", "mission", cwd=mission.parent)
    line = "rich is installed but does not load: No module named 'rich.console'"
    assert_one_line(done, f"groundstation: {line}", code=1)


def test_an_import_that_no_extra_brings_is_one_line_too(mission: Path) -> None:
    env = without(mission.parent, "numpy")
    done = program(env, "onboard", "doctor", "mission/boards/pi/node.toml", cwd=mission.parent)
    assert_one_line(done, "onboard: cannot start: No module named 'numpy'", code=1)


def test_the_table_of_extras_is_the_projects() -> None:
    for extra, packages in BRINGS.items():
        names = {re.split("[<>=!;]", text)[0].strip() for text in EXTRAS[extra]}
        assert {CALLED.get(package, package).lower() for package in packages} == names
