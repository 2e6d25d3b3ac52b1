"""An end of a link tells what befell it, in JSON lines with the computer's monotonic clock.

Standard library only: other interpreters run it.
"""

from __future__ import annotations

import json
import time
from typing import Any


def tell(event: str, **more: Any) -> None:
    """One line: the event, when it was (`at_s`), and the process's CPU time so far."""
    told = {"event": event, "at_s": time.monotonic(), "cpu_s": time.process_time(), **more}
    print(json.dumps(told), flush=True)
