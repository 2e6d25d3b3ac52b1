"""`python -m benchmarks.ends.witness FILE MODULE ARGS` runs MODULE and writes to FILE what it had imported.

One name of `sys.modules` a line, taken when the program ends, so imports in mid-run are seen as well.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path


def main() -> None:
    """Becomes `python -m MODULE ARGS`, whatever its exit code."""
    if len(sys.argv) < 3:
        sys.exit("usage: python -m benchmarks.ends.witness FILE MODULE ARGS")
    report, module = Path(sys.argv[1]), sys.argv[2]
    sys.argv = sys.argv[2:]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        report.write_text("".join(f"{name}\n" for name in sorted(sys.modules)), encoding="utf-8")


if __name__ == "__main__":
    main()
