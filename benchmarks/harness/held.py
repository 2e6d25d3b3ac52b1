"""What programs hold in this process: memory that flight code took, objects in reach, tables, descriptors.

Nothing of the benchmark's own counts, nor what waits in half-received objects: that comes and goes.
"""

from __future__ import annotations

import gc
import tracemalloc
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import onboard
from onboard.link.pump import Pump

_CODE = (
    str(Path(onboard.__file__).parent / "*"),
    "<string>",
)  # the latter made the dataclasses' methods
_NOT_HELD = (type, ModuleType, FunctionType, BuiltinFunctionType, MethodType)
_TABLES = (dict, list, set, deque)


@dataclass(frozen=True, slots=True)
class Held:
    """`bytes_`: allocated by flight code. `objects` in reach of the pumps, `longest` the largest table among
    them. `files`: open descriptors of this process."""

    bytes_: int
    objects: int
    longest: int
    files: int


def held(pumps: Sequence[Pump]) -> Held:
    """What `pumps` and all behind them hold now; tracemalloc is on."""
    gc.collect()
    filters = [tracemalloc.Filter(True, pattern) for pattern in _CODE]
    traces = tracemalloc.take_snapshot().filter_traces(filters).traces
    waiting = sum(each.size for pump in pumps for each in pump.session.incoming.values())
    objects, longest = _reach(pumps)
    return Held(sum(trace.size for trace in traces) - waiting, objects, longest, len(list(_FILES.iterdir())))


_FILES = Path("/proc/self/fd")


def _reach(pumps: Sequence[Pump]) -> tuple[int, int]:
    """Objects in reach of the pumps, up to their ports, and the length of the longest table among them."""
    seen: dict[int, Any] = {}
    todo: list[Any] = list(pumps)
    longest = 0
    while todo:
        each = todo.pop()
        if id(each) in seen or isinstance(each, _NOT_HELD) or _is_ours(each):
            continue
        seen[id(each)] = each
        if isinstance(each, _TABLES):
            longest = max(longest, len(each))
        todo += gc.get_referents(each)
    return len(seen), longest


def _is_ours(each: Any) -> bool:
    return type(each).__module__.partition(".")[0] in ("benchmarks", "firmware_sim")
