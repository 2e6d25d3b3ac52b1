"""Boards and links as data: every value has its unit in its name and its source beside it.

A profile is a TOML file, `boards/NAME.toml` or `links/NAME.toml`; the file's stem is the profile's name. Two
keys are plain text, `kind` ("board" or "link") and `title`; every other key is one value with its source:

    rate_up_bps = { value = 9600, source = "k: AMSAT and ISIS UHF transceivers, GMSK 9k6" }

A source opens with a mark: `s:` found in public sources, `k:` known from data sheets and to be verified
before relying on it, `c:` calculated or chosen (and how), `m:` measured on the board or link itself."""

from __future__ import annotations

import dataclasses
import difflib
import errno
import importlib
import math
import re
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

import msgspec

_FOLDER = Path(__file__).parent
# Chosen by name because the one that the running Python lacks is not installed either.
_toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
_MOST_CHARACTERS = 16 * 2**20  # of a file: a contact plan of 100,000 contacts takes 10 MB
_SOURCE = re.compile(r"[skcm]: \S")

Kind = Literal["board", "link"]
Text = Annotated[str, msgspec.Meta(min_length=1)]
Positive = Annotated[float, msgspec.Meta(gt=0)]
NotNegative = Annotated[float, msgspec.Meta(ge=0)]
Fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]
Share = Annotated[float, msgspec.Meta(gt=0, le=1)]
Count = Annotated[int, msgspec.Meta(ge=1)]
Abi = Literal["x86_64", "aarch64", "armv7l", "riscv64", "sparc"]


class ProfileError(ValueError):
    """A profile file is not usable; the message is one line with the file, the key and the value."""


class UnknownProfile(ValueError):  # noqa: N818 - the name that the rest of the project catches
    """No profile has this name; the message names the nearest ones."""


@dataclass(frozen=True)
class Link:
    """One radio or cable between a board and the ground.

    Up is from the board to the ground, down is from the ground to the board, as in federated learning. It is
    the reverse of a radio operator's uplink and downlink.
    """

    name: str
    title: str
    rate_up_bps: Positive
    """Line rate from the board to the ground."""
    rate_down_bps: Positive
    """Line rate from the ground to the board."""
    bits_per_byte: Annotated[int, msgspec.Meta(ge=8, le=12)]
    """Line bits that carry one byte: 10 on a UART with 8N1, else 8."""
    mtu_bytes: Annotated[int, msgspec.Meta(ge=32, le=65507)]
    """Largest frame, header and tag included, before COBS."""
    delay_s: NotNegative
    """Delay of one way, antenna to antenna."""
    keying_s: NotNegative
    """Time that the transmitter is on before the first bit when a half-duplex direction turns; 0 on a
    full-duplex link."""
    half_duplex: bool
    """Whether a side that transmits hears nothing."""
    frame_loss: Fraction
    """Probability that a whole frame is lost, beside bit errors."""
    bit_error_rate: Fraction
    """Probability that a bit is wrong."""
    availability: Fraction
    """Long-run share of planned contact time in which the link works. It is for planning: the cable does not
    apply it."""
    tx_power_w: NotNegative
    """Power that the board draws in addition while it transmits."""
    sources: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True)
class Board:
    """One computer that may train."""

    name: str
    title: str
    cpu: Text
    """Processor and core."""
    cores: Count
    """Number of cores."""
    clock_hz: Positive
    """Highest sustained clock."""
    memory_bytes: Count
    """Memory of the smallest variant that is sold."""
    train_flops: NotNegative
    """Float32 operations a second, sustained in training on CPU or GPU. 0 is a board that only relays."""
    active_w: Positive
    """Power of the whole board while it computes."""
    idle_w: Positive
    """Power of the whole board while it waits."""
    abi: Abi
    """Instruction set."""
    providers: tuple[Text, ...]
    """onnxruntime's provider names in order of preference; `numpy` where it has no wheel; none on a relay."""
    agent_memory_bytes: Count
    """Memory limit that an agent gets by default."""
    cpu_share: Share
    """Share of one core that an agent gets by default."""
    sources: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)


P = TypeVar("P", Board, Link)
_CLASSES: dict[Kind, type[Board] | type[Link]] = {"board": Board, "link": Link}


def names(kind: Kind) -> list[str]:
    """Names of the profiles that ship with the package, sorted."""
    return sorted(path.stem for path in (_FOLDER / f"{kind}s").glob("*.toml"))


def load(name_or_path: str | Path) -> Board | Link:
    """The profile of that name, or in that file if it ends in `.toml` or contains a path separator. Raises
    UnknownProfile for a name that no profile has and ProfileError for a file that is not a profile."""
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or text.endswith(".toml") or "/" in text:
        return _read(Path(name_or_path))
    for kind in _CLASSES:
        if text in names(kind):
            return _read(_FOLDER / f"{kind}s" / f"{text}.toml")
    raise UnknownProfile(_unknown(text, names("board") + names("link"), "profile"))


def load_board(name_or_path: str | Path) -> Board:
    """As `load`, for boards only; a link's name is an unknown board."""
    return _load(name_or_path, Board)


def load_link(name_or_path: str | Path) -> Link:
    """As `load`, for links only; a board's name is an unknown link."""
    return _load(name_or_path, Link)


def _load(name_or_path: str | Path, cls: type[P]) -> P:
    kinds: tuple[Kind, Kind] = ("board", "link") if cls is Board else ("link", "board")
    kind, other = kinds
    try:
        profile = load(name_or_path)
    except UnknownProfile:
        raise UnknownProfile(_unknown(str(name_or_path), names(kind), kind)) from None
    if not isinstance(profile, cls):
        raise UnknownProfile(f"{name_or_path} is a {other}, not a {kind}; {kind}s: {', '.join(names(kind))}")
    return profile


def _unknown(name: str, known: list[str], what: str) -> str:
    nearest = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    hint = f"nearest: {', '.join(nearest)}" if nearest else f"known: {', '.join(known)}"
    return f"no {what} is named {name!r}; {hint}"


def _read(path: Path) -> Board | Link:
    try:
        table = toml_of(path)
    except OSError as error:
        raise ProfileError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ProfileError(f"{path}: is {error}") from None

    kind = table.pop("kind", None)
    if not isinstance(kind, str) or kind not in _CLASSES:
        raise ProfileError(f'{path}: kind = {kind!r}: must be "board" or "link"')
    title = table.pop("title", None)
    if not isinstance(title, str) or not title:
        raise ProfileError(f"{path}: title = {title!r}: must be text")

    cls = _CLASSES[kind]
    hints = get_type_hints(cls, include_extras=True)
    keys = [f.name for f in dataclasses.fields(cls) if f.name not in ("name", "title", "sources")]
    for key, entry in table.items():
        if key not in keys:
            raise ProfileError(_unknown_key(path, key, entry, keys))
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for key in keys:
        if key not in table:
            raise ProfileError(f"{path}: {key} is missing")
        values[key], sources[key] = _value(path, key, table[key], hints[key])
    return cls(name=path.stem, title=title, **values, sources=sources)


def _unknown_key(path: Path, key: str, entry: object, keys: list[str]) -> str:
    """A key that says the right thing in the wrong unit is told so: `rate_up_kbps` for `rate_up_bps`."""
    value = entry.get("value", entry) if isinstance(entry, dict) else entry
    stem = key.rpartition("_")[0]
    same = [known for known in keys if stem and known.rpartition("_")[0] == stem]
    if same:
        return f"{path}: {key} = {value!r}: unknown unit {key[len(stem) + 1 :]!r}, the key is {same[0]}"
    nearest = difflib.get_close_matches(key, keys, n=1, cutoff=0)
    return f"{path}: {key} = {value!r}: unknown key, nearest is {nearest[0]}"


def _value(path: Path, key: str, entry: object, hint: Any) -> tuple[Any, str]:
    if not isinstance(entry, dict) or set(entry) != {"value", "source"}:
        raise ProfileError(f'{path}: {key} = {entry!r}: must be {{ value = ..., source = "..." }}')
    value, source = entry["value"], entry["source"]
    if not isinstance(source, str) or not _SOURCE.match(source):
        raise ProfileError(f"{path}: {key}: source = {source!r}: must open with 's: ', 'k: ', 'c: ' or 'm: '")
    if isinstance(value, float) and not math.isfinite(value):
        raise ProfileError(f"{path}: {key} = {value!r}: must be a finite number")
    try:
        return msgspec.convert(value, hint), source
    except OverflowError:
        raise ProfileError(f"{path}: {key}: too large a number") from None
    except msgspec.ValidationError as error:
        raise ProfileError(f"{path}: {key} = {value!r}: {error}") from None


def toml_of(path: Path) -> dict[str, Any]:
    """The tables of a TOML file that a person has written, without the mark that Windows' editors begin with.
    Raises ValueError, which says what it is not, and OSError, also for what is no file: a pipe would be
    waited for, and a device such as /dev/zero read until the memory is full."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError(errno.EINVAL, "it is a pipe or a device, and no file", str(path))
    try:
        with path.open(encoding="utf-8-sig") as file:
            text = file.read(_MOST_CHARACTERS + 1)
        if len(text) > _MOST_CHARACTERS:
            raise OSError(errno.EFBIG, f"it is longer than {_MOST_CHARACTERS >> 20} MiB", str(path))
        tables: dict[str, Any] = _toml.loads(text)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from None
    except ValueError as error:  # TOMLDecodeError, and what int() says of a number of 4,300 digits
        raise ValueError(f"not valid TOML: {error}") from None
    except RecursionError:
        raise ValueError("not valid TOML: nested too deeply") from None
    return tables
