"""Every profile that ships is complete and sourced, and a wrong one is refused in one line that helps."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from hw_profiles import Board, Link, ProfileError, UnknownProfile, load, load_board, load_link, names

BOARDS = [
    "raspberry-pi-zero-2w", "raspberry-pi-4", "raspberry-pi-cm4", "raspberry-pi-5", "raspberry-pi-cm5",
    "jetson-nano", "jetson-tx2i", "jetson-xavier-nx", "jetson-orin-nano", "jetson-orin-nx",
    "jetson-agx-orin", "xiphos-q7s", "xiphos-q8s", "kplabs-leopard", "unibap-ix5-106", "unibap-ix10-101",
    "zynq7020-dpu", "zu9eg-dpu", "polarfire-soc", "gr740"
]  # fmt: skip
LINKS = [
    "uhf-9k6", "lora-sf7", "lora-sf12", "sband-256k", "sband-2m", "xband-50m", "isl-2mbyte", "cap-200k",
    "cap-200m", "optical-isl", "geo-relay", "bench-serial-115k2", "bench-udp"
]  # fmt: skip
DOCS = (Path(__file__).parents[2] / "docs" / "reference" / "profiles.md").read_text(encoding="utf-8")


def test_every_board_and_link_of_the_design_is_there() -> None:
    assert names("board") == sorted(BOARDS)
    assert names("link") == sorted(LINKS)


@pytest.mark.parametrize("name", BOARDS + LINKS)
def test_profile_loads_and_every_value_has_a_marked_source(name: str) -> None:
    profile = load(name)
    assert profile.name == name
    values = {f.name for f in dataclasses.fields(profile)} - {"name", "title", "sources"}
    assert set(profile.sources) == values
    assert all(re.match(r"[skcm]: \S", source) for source in profile.sources.values())


@pytest.mark.parametrize("name", BOARDS)
def test_board_is_plausible(name: str) -> None:
    board = load_board(name)
    assert board.idle_w <= board.active_w
    assert board.agent_memory_bytes <= board.memory_bytes / 4
    assert (board.train_flops == 0) == (board.providers == ())
    has_wheel = board.abi in ("x86_64", "aarch64")
    assert not board.providers or (board.providers == ("numpy",)) != has_wheel


@pytest.mark.parametrize("name", LINKS)
def test_link_is_plausible(name: str) -> None:
    link = load_link(name)
    assert link.half_duplex == (link.keying_s > 0)
    longest_s = link.mtu_bytes * link.bits_per_byte / min(link.rate_up_bps, link.rate_down_bps)
    assert longest_s < 3, "one frame would hold up a command for longer than a report may take"


def test_up_is_from_the_board_to_the_ground() -> None:
    xband = load_link("xband-50m")
    assert (xband.rate_up_bps, xband.rate_down_bps) == (50e6, 256e3)


@pytest.mark.parametrize("kind", ["board", "link"])
def test_docs_name_every_field_and_profile(kind: str) -> None:
    cls = Board if kind == "board" else Link
    for field in dataclasses.fields(cls):
        assert f"`{field.name}`" in DOCS
    for name in BOARDS + LINKS:
        assert f"`{name}`" in DOCS


def test_unknown_name_gets_the_nearest_ones() -> None:
    with pytest.raises(UnknownProfile, match=r"'uhf9k6'; nearest: uhf-9k6$"):
        load("uhf9k6")
    with pytest.raises(UnknownProfile, match="no board is named 'jetson-nanno'; nearest: jetson-nano"):
        load_board("jetson-nanno")
    with pytest.raises(UnknownProfile, match="jetson-nano is a board, not a link"):
        load_link("jetson-nano")


def test_name_like_nothing_gets_the_whole_list() -> None:
    with pytest.raises(UnknownProfile, match="known: " + ", ".join(sorted(LINKS))):
        load_link("???")


def shipped(name: str) -> str:
    folder = "links" if name in LINKS else "boards"
    return (Path(load.__code__.co_filename).parent / folder / f"{name}.toml").read_text(encoding="utf-8")


def test_a_file_of_ones_own_loads_by_path(tmp_path: Path) -> None:
    path = tmp_path / "my-radio.toml"
    path.write_text(shipped("uhf-9k6").replace("value = 9600", "value = 4800"), encoding="utf-8")
    link = load(str(path))
    assert isinstance(link, Link)
    assert (link.name, link.rate_up_bps) == ("my-radio", 4800)
    assert load_link(path) == link


UP = 'rate_up_bps = { value = 9600, source = "k: AMSAT and ISIS UHF transceivers, GMSK 9k6" }'


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        (UP, UP.replace("9600", '"fast"'), r"rate_up_bps = 'fast': Expected `float`, got `str`"),
        (UP, UP.replace("9600", "-1"), r"rate_up_bps = -1: Expected `float` > 0"),
        (UP, UP.replace("9600", "true"), r"rate_up_bps = True: Expected `float`, got `bool`"),
        (
            UP,
            UP.replace("up_bps", "up_kbps"),
            r"rate_up_kbps = 9600: unknown unit 'kbps', the key is rate_up_bps",
        ),
        (UP, UP + '\ncolour = { value = 1, source = "c: no" }', r"colour = 1: unknown key, nearest is "),
        (UP, "", r"rate_up_bps is missing"),
        (UP, "rate_up_bps = 9600", r"rate_up_bps = 9600: must be \{ value = \.\.\., source = "),
        (UP, "rate_up_bps = { value = 9600 }", r"rate_up_bps = \{'value': 9600\}: must be \{ value = "),
        (UP, UP.replace("k: AMSAT", "AMSAT"), r"rate_up_bps: source = 'AMSAT.*': must open with 's: '"),
        (UP, "rate_up_bps = ", r"is not valid TOML: "),
        ('kind = "link"', 'kind = "cable"', r"kind = 'cable': must be \"board\" or \"link\""),
        ('kind = "link"', "", r"kind = None: must be"),
        ("title = ", "title = 3 #", r"title = 3: must be text"),
        ("half_duplex = { value = true", "half_duplex = { value = 1", r"half_duplex = 1: Expected `bool`"),
        ("value = 256,", "value = 256.5,", r"mtu_bytes = 256.5: Expected `int`"),
    ],
)
def test_bad_file_is_refused_in_one_line(tmp_path: Path, old: str, new: str, complaint: str) -> None:
    text = shipped("uhf-9k6")
    assert old in text
    path = tmp_path / "bad.toml"
    path.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(ProfileError, match=complaint) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_missing_and_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"nowhere\.toml: cannot be read: No such file"):
        load(str(tmp_path / "nowhere.toml"))
    (tmp_path / "latin.toml").write_bytes(b'title = "\xe9"')
    with pytest.raises(ProfileError, match=r"latin\.toml: is not UTF-8 at byte 9"):
        load(tmp_path / "latin.toml")
