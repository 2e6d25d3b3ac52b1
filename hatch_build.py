"""Ends an install on a 32-bit Python with one line, before pip compiles for minutes what then fails."""

import os
import sys
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

REFUSAL = (
    "This Python is 32-bit, for which numpy, msgspec, zstandard and onnxruntime have no wheels. Use a 64-bit "
    "system, or Debian's packages as docs/howto/offline.md says."
)


class OnlyWhereItsWheelsAre(BuildHookInterface):
    """Runs as the wheel is built, which pip has done before it fetches a single dependency."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Changes nothing. Raises SystemExit, whose line pip shows, unless SPACEDML_32BIT=1 admits it."""
        if sys.maxsize < 2**32 and os.environ.get("SPACEDML_32BIT") != "1":
            raise SystemExit(REFUSAL)
