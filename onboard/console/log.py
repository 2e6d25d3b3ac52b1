"""The programs' log: one line for each event, as text or as JSON, in the same form on both sides."""

from __future__ import annotations

import copy
import json
import logging
import math
import sys
import time
from collections.abc import Hashable
from numbers import Integral, Real
from typing import Any, Literal

from onboard.console.lines import Lines, descriptor

log = logging.getLogger(__name__)

Format = Literal["text", "json"]
BURST = 20  # lines of one kind that another end can cause at once
EVERY_S = 10.0  # between lines after the burst
_MOST_KINDS = 4096
_CAUSED = frozenset({
    "in-sight", "out-of-sight", "peer-at", "rekeyed", "result-discarded", "superseded", "update-discarded",
})  # fmt: skip
"""Events below the level of a warning that another end can cause."""


def start(form: Format, level: int = logging.INFO) -> None:
    """Sends every event of this process to standard output at once. Logging never waits for the reader: lines
    that do not fit the queue are dropped, and `log-dropped` counts them."""
    formatter = _JsonLines() if form == "json" else _Text()
    output: logging.Handler
    if sys.stdout is None:  # closed before the program began; logging would turn to standard error
        output = logging.NullHandler()
    elif (fd := descriptor(sys.stdout)) is None:
        output = logging.StreamHandler(sys.stdout)
    else:
        output = _Output(fd, formatter)
    output.setFormatter(formatter)
    logging.basicConfig(level=level, handlers=[output], force=True)


class Rarely:
    """A leaky bucket for each kind of line: a burst, then few, and all are counted."""

    def __init__(self) -> None:
        self._kinds: dict[Hashable, tuple[float, float, int]] = {}  # level, when, and how many were not said

    def may(self, kind: Hashable, now: float) -> int | None:
        """Returns how many of its kind were suppressed before this line; None if this one is to be, too."""
        level, at, unsaid = self._kinds.pop(kind, (0.0, now, 0))
        level = max(0.0, level - (now - at) / EVERY_S)
        says = level <= BURST - 1
        self._kinds[kind] = (level + 1, now, 0) if says else (level, now, unsaid + 1)
        if len(self._kinds) > _MOST_KINDS:
            del self._kinds[next(iter(self._kinds))]  # the one that was wanted longest ago
        return unsaid if says else None


class _Output(logging.Handler):
    """Writes events through `Lines`, warnings of one kind about one peer rarely; `unsaid` counts the rest."""

    def __init__(self, fd: int, formatter: logging.Formatter) -> None:
        super().__init__()

        def dropped(lines: int) -> str:
            record = record_of(log, "log-dropped", level=logging.WARNING, lines=lines)
            return formatter.format(record) + "\n"

        self._lines = Lines(fd, dropped)
        self._rarely = Rarely()

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING or record.getMessage() in _CAUSED:
            fields = getattr(record, "fields", {})
            kind = record.getMessage(), fields.get("node"), fields.get("peer")
            unsaid = self._rarely.may(kind, time.monotonic())
            if unsaid is None:
                return
            if unsaid:
                record = copy.copy(record)
                record.fields = {**fields, "unsaid": unsaid}
        self._lines.put(self.format(record) + "\n")

    def close(self) -> None:
        self._lines.close()
        super().close()


def say(logger: logging.Logger, event: str, /, *, level: int = logging.INFO, **fields: Any) -> None:
    """Logs `event`, a short and stable name that tools read, with its `fields`."""
    logger.log(level, event, extra={"fields": fields})


def record_of(logger: logging.Logger, event: str, /, *, level: int, **fields: Any) -> logging.LogRecord:
    """Makes the record that `say` would log, for a line that takes another way out."""
    made = {"name": logger.name, "msg": event, "levelno": level, "levelname": logging.getLevelName(level)}
    return logging.makeLogRecord(made | {"fields": fields})


class _JsonLines(logging.Formatter):
    """One JSON object a line: at (Unix seconds), level, from (module), event, then the fields."""

    def format(self, record: logging.LogRecord) -> str:
        head = {"at": round(record.created, 3), "level": record.levelname.lower(), "from": record.name}
        line = head | {"event": record.getMessage()} | getattr(record, "fields", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(_plain(line), allow_nan=False)


class _Text(logging.Formatter):
    """`12:03:11 event key=value key=value`; warnings and errors say so."""

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        loud = "" if record.levelno < logging.WARNING else f"{record.levelname} "
        fields = " ".join(f"{key}={_short(value)}" for key, value in getattr(record, "fields", {}).items())
        text = f"{clock} {loud}{record.getMessage()} {fields}".rstrip()
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, bytes):
        return value[:4].hex()
    text = str(value)
    return text if text.isprintable() and text and " " not in text else repr(text)  # one line, one word


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(inner) for inner in value]
    if isinstance(value, bytes):
        return value.hex()
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):  # numpy's too; a loss that is not a number is null, as JSON has no NaN
        return float(value) if math.isfinite(value) else None
    return str(value)
