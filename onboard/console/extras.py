"""Names the extra that installs a missing package, and says why an installed one does not load."""

from __future__ import annotations

import importlib.util

# As pyproject.toml has them, by the name that is imported.
BRINGS = {
    "flight": ("onnxruntime", "safetensors"),
    "ground": ("onnxruntime", "safetensors", "rich"),
    "pictures": ("PIL",),
    "sim": ("onnxruntime", "safetensors", "rich", "sklearn", "PIL", "matplotlib"),
    "crypto": ("cryptography",),
    "author": ("torch", "onnx", "onnxruntime", "safetensors"),
}
OWN = {"onboard": "flight", "groundstation": "ground", "firmware-sim": "sim"}  # what a program is for
CALLED = {"sklearn": "scikit-learn", "PIL": "Pillow"}  # where a package is imported by another name


def require(*packages: str) -> None:
    """Checks that packages are there, without loading them. Raises ModuleNotFoundError."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)


def unusable(package: str, error: Exception, program: str = "") -> str:
    """Says in one line that `package` is missing, with the extra of `program` to install, or that it is
    broken (by an old system library or files of another version), which installing does not repair."""
    called = CALLED.get(package, package)
    if isinstance(error, ModuleNotFoundError) and error.name == package:
        extras = (OWN.get(program, ""), *BRINGS)
        extra = next(extra for extra in extras if package in BRINGS.get(extra, ()))
        return f"{called} is not installed: pip install 'spacedml-edge[{extra}]'"
    return f"{called} is installed but does not load: {root_cause(error)}"


def wanted(error: ImportError) -> str | None:
    """Returns the package of an extra that an import error is about, or None."""
    package = (error.name or "").partition(".")[0]
    return package if any(package in packages for packages in BRINGS.values()) else None


def root_cause(error: BaseException) -> str:
    """Returns the first line of the original error; numpy, for one, wraps it in a page of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0].strip() if lines else type(error).__name__
