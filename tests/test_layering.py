"""The house stays as it was drawn: who imports whom, and what the flight side never loads."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ARROWS = {  # each package may import itself and these
    "hw_profiles": set[str](),
    "onboard": {"hw_profiles"},
    "groundstation": {"onboard", "hw_profiles"},
    "firmware_sim": {"onboard", "hw_profiles"},
}
PURE = ("onboard/wire", "onboard/codec", "onboard/learn")  # no I/O, no clock, no hidden randomness
IMPURE = {
    "asyncio", "fcntl", "io", "multiprocessing", "os", "pathlib", "random", "resource",
    "secrets", "select", "selectors", "serial", "shutil", "signal", "socket", "sqlite3", "ssl", "subprocess",
    "tempfile", "threading", "time", "urllib",
}  # fmt: skip
# It loads the graph that it runs, and turns onnxruntime's telemetry off, which is an environment variable.
READS_A_FILE = {"onboard/learn/graph.py": {"os", "pathlib"}, "onboard/learn/networks.py": {"pathlib"}}
GROUND_ONLY = (
    "torch", "onnx", "rich", "starlette", "sklearn", "matplotlib", "PIL", "groundstation", "firmware_sim",
)  # fmt: skip
MOST_LINES = 450  # 400 are a hint; a class whose methods live elsewhere to stay below is worse
MOST_MODULES = 18
MOST_PARAMETERS = 7  # more are a struct that wants a name

FILES = sorted(path for package in ARROWS for path in (ROOT / package).rglob("*.py"))
FLIGHT = [
    path for path in FILES if path.is_relative_to(ROOT / "onboard") or path.parent.name == "hw_profiles"
]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports(path: Path) -> list[str]:
    """Dotted names of all that a file imports, wherever in it: `from a import b` counts as a and as a.b."""
    names = []
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno}: relative import"
            assert node.module is not None
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names


def is_in(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def test_there_is_something_to_look_at() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == set(ARROWS)
    assert all(any(name_of(path).startswith(part) for path in FILES) for part in PURE)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_package_imports_only_what_its_arrows_point_at(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    others = set(ARROWS) - ARROWS[package] - {package}
    assert [name for name in imports(path) if any(is_in(name, other) for other in others)] == []


def test_bytes_know_no_weights_and_weights_no_frames() -> None:
    for path in FILES:
        name = name_of(path)
        strangers: tuple[str, ...]
        if name.startswith("onboard/wire/"):
            strangers = ("onboard.codec", "onboard.learn", "onboard.mission", "onboard.link", "numpy")
        elif name.startswith("onboard/codec/"):
            strangers = ("onboard.wire", "onboard.link", "onboard.learn", "onboard.mission")
        elif name.startswith("onboard/learn/"):
            strangers = ("onboard.wire", "onboard.link", "onboard.mission")
        else:
            continue
        assert [one for one in imports(path) if any(is_in(one, other) for other in strangers)] == [], name


def test_a_folder_is_looked_over_at_a_glance() -> None:
    counts = Counter(path.parent for path in FILES if path.name != "__init__.py")
    assert [name_of(folder) for folder, count in counts.items() if count > MOST_MODULES] == []


def test_a_class_name_stands_for_one_thing() -> None:
    others = [path for folder in ("benchmarks", "tests") for path in (ROOT / folder).rglob("*.py")]
    places: dict[str, list[str]] = defaultdict(list)
    for path in [*FILES, *others]:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(name_of(path))
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_no_function_takes_more_than_seven_parameters() -> None:
    """Apart from self and cls, and from the commands of click, which have one for each option."""
    too_many: dict[str, set[str]] = defaultdict(set)
    for path in FILES:
        for node in ast.walk(tree_of(path)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            arguments = node.args
            names = [each.arg for each in arguments.posonlyargs + arguments.args + arguments.kwonlyargs]
            is_command = any("command(" in ast.unparse(each) for each in node.decorator_list)
            if not is_command and len(names) - (names[:1] in (["self"], ["cls"])) > MOST_PARAMETERS:
                too_many[name_of(path)].add(node.name)
    assert too_many == {}


@pytest.mark.parametrize("path", [p for p in FILES if name_of(p).startswith(PURE)], ids=name_of)
def test_protocol_codec_and_learning_touch_no_file_socket_or_clock(path: Path) -> None:
    allowed = READS_A_FILE.get(name_of(path), set())
    found = {name.split(".")[0] for name in imports(path)} & IMPURE
    assert found <= allowed
    calls = {
        node.func.id
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert calls & {"open", "input", "print"} == set()


@pytest.mark.parametrize("path", FLIGHT, ids=name_of)
def test_the_flight_side_is_python_3_10(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source, feature_version=(3, 10))
    newer = {"tomllib", "typing.Self", "typing.override", "datetime.UTC", "enum.StrEnum", "itertools.batched"}
    guarded = {id(inner) for node in ast.walk(tree) if _asks_version(node) for inner in ast.walk(node)}
    loose = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        and id(node) not in guarded
        and newer & _imported(node)
    ]
    assert [ast.unparse(node) for node in loose] == []
    if "tomllib" in source:
        assert 'tomli"' in source or "import tomli as tomllib" in source, "no fallback for 3.10"


def _asks_version(node: ast.AST) -> bool:
    return isinstance(node, ast.If | ast.IfExp) and "sys.version_info" in ast.unparse(node.test)


def _imported(node: ast.Import | ast.ImportFrom) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    return {f"{node.module}.{alias.name}" for alias in node.names} | {node.module or ""}


def test_the_agent_starts_without_anything_of_the_ground() -> None:
    script = (
        "import sys, onboard.cli, onboard.runtime.federated, onboard.agents.federated, onboard.doctor;"
        f"print(*[name for name in {GROUND_ONLY!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_training_on_the_flight_side_loads_nothing_of_the_ground() -> None:
    script = (
        "import sys, numpy as np; from onboard.learn.graph import TrainGraph, initial;"
        "graph = TrainGraph.load('lenet5'); weights = initial(graph.shapes, 1);"
        "loss, gradients, _ = graph.step(weights, np.zeros((2, 1, 28, 28), np.float32), np.array([3, 4]));"
        "assert np.isfinite(loss) and set(gradients) == set(weights);"
        f"print(*[name for name in {GROUND_ONLY!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_is_short_and_says_what_it_promises(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= MOST_LINES
    assert not source.strip() or ast.get_docstring(tree_of(path)), "no docstring"
    assert path.name not in ("utils.py", "helpers.py", "common.py")


def test_one_file_needs_the_package_that_encrypts_and_a_plain_link_does_not_load_it() -> None:
    users = [name_of(path) for path in FILES if any(is_in(name, "cryptography") for name in imports(path))]
    assert users == ["onboard/wire/security/cipher.py"]
    script = (
        "import sys, onboard.cli, onboard.runtime.federated;"
        "from onboard.wire.security.seal import SECRET, Opener, Sealer;"
        "from onboard.wire.framing.frame import Type; key, way = bytes(32), dict(source=1, destination=0);"
        "raw = Sealer(key, epoch=1, **way).seal(Type.MSG); assert Opener(key, **way).open(raw);"
        "print('cryptography' in sys.modules);"
        "raw = Sealer(key, epoch=1, purpose=SECRET, **way).seal(Type.MSG);"
        "assert Opener(key, purpose=SECRET, **way).open(raw); print('cryptography' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    assert (done.returncode, done.stdout.split()) == (0, ["False", "True"]), done.stderr
