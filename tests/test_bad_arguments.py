"""What a person may type or a disk may do: one line, the documented exit code, and nothing half done."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from click.types import FloatParamType

import firmware_sim.cli
import groundstation.cli
import onboard.cli
from groundstation.config import load_mission
from hw_profiles import ProfileError, load_link
from onboard.config import load_node
from onboard.console.toml import ConfigError
from tests.disks import remount, small_disk
from tests.missions.bench import change, run

PROGRAMS = {
    "onboard": onboard.cli.main,
    "groundstation": groundstation.cli.main,
    "firmware-sim": firmware_sim.cli.main,
}
FLOATS = [
    (program, name, param.opts[0])
    for program, group in PROGRAMS.items()
    for name, command in group.commands.items()
    for param in command.params
    if isinstance(param.type, FloatParamType)
]
SHIPPED = Path(__file__).parents[1] / "hw_profiles"


def required(command: click.Command) -> list[str]:
    """What a command cannot do without, so that its lack is not complained of first."""
    return [word for param in command.params if param.required
            for word in ([param.opts[0], "x"] if param.param_type_name == "option" else ["x"])]  # fmt: skip


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "NaN", "1e999"])
@pytest.mark.parametrize(("program", "command", "option"), FLOATS, ids=[" ".join(each) for each in FLOATS])
def test_no_option_takes_a_number_that_is_none(program: str, command: str, option: str, value: str) -> None:
    group = PROGRAMS[program]
    arguments = [command, f"{option}={value}", *required(group.commands[command])]  # judged in this order
    result = CliRunner().invoke(group, arguments)
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert option in result.stderr


ENDS = ("--link", "bench-serial-115k2", "--ground", "a", "--board", "b")
WRONG = [
    ("firmware-sim", ("cable", *ENDS, "--burst", "nan:2"), "--burst nan:2: must be two numbers"),
    ("firmware-sim", ("cable", *ENDS, "--window", "nan:5"), "--window nan:5: must be two numbers"),
    ("firmware-sim", ("cable", *ENDS, "--window", "0:inf"), "--window 0:inf: must be two numbers"),
    ("firmware-sim", ("ring", "--dead", "3@nan"), "--dead '3@nan': expected NODE@SECONDS"),
    ("firmware-sim", ("ring", "--cut", "1-2@0:inf"), "--cut '1-2@0:inf': expected A-B@FROM:UNTIL"),
    ("firmware-sim", ("ring", "--dead", "3@1", "--dead", "3@9"), "--dead: 3 is given twice"),
    ("firmware-sim", ("ring", "--cut", "1-2@0:1", "--cut", "2-1@5:6"), "--cut: (1, 2) is given twice"),
    ("firmware-sim", ("ring", "--cut", "1-2@9:1"), "--cut '1-2@9:1': ends before it begins"),
    ("firmware-sim", ("ring", "--shift-pixels", "-1"), "--shift-pixels"),
    ("firmware-sim", ("ring", "--columns", "0"), "--columns"),
    ("firmware-sim", ("ring", "--drop", "-1"), "--drop"),
    ("firmware-sim", ("fleet", "--rounds", "65535"), "--rounds"),
    ("firmware-sim", ("demo", "--real", "jetson-nano=/dev/a", "--real", "jetson-nano=/dev/b"), "given twice"),
    ("groundstation", ("init", "m", "--node", "pi,port=/dev/a,cpu-share=nan"), "cpu_share = nan: "),
    ("groundstation", ("init", "m", "--node", "pi,port=serial:/dev/a?baud=1&baud=2"), "baud is given twice"),
    ("groundstation", ("init", "m", "--node", "pi,port=serial:/dev/a#b"), "no path of a device"),
    ("groundstation", ("init", "m", "--name", "a\udcffb", "--node", "pi,port=/dev/a"), "is not UTF-8"),
    ("groundstation", ("init", "m", "--node", "pi,port=/dev/a,data=npz:\udcff"), "is not UTF-8"),
    ("groundstation", ("init", "m\udcff", "--node", "pi,port=/dev/a"), "is not UTF-8"),
    ("onboard", ("run", "n\udcff.toml"), "is not UTF-8"),
]  # fmt: skip


@pytest.mark.parametrize(("program", "arguments", "says"), WRONG, ids=[" ".join(a[1])[-40:] for a in WRONG])
def test_what_cannot_be_meant_is_one_line_and_nothing_is_written(
    program: str, arguments: tuple[str, ...], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(PROGRAMS[program], list(arguments))
    assert result.exit_code == 2, result.output
    assert says in result.stderr
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_control_character_in_a_name_makes_no_file_that_cannot_be_read(tmp_path: Path) -> None:
    name = 'tab\t, delete \x7f, bell \x07, quote ", back \\ and two\nlines'
    arguments = ["init", str(tmp_path), "--name", name, "--node", "pi,port=/dev/my tty"]
    assert CliRunner().invoke(groundstation.cli.main, arguments).exit_code == 0
    assert load_mission(tmp_path).rules.name == name
    assert load_node(tmp_path / "boards" / "pi" / "node.toml").ground.port == "/dev/my tty"


# -- files -------------------------------------------------------------------------------------------------


@pytest.fixture
def mission(tmp_path: Path) -> Path:
    folder = tmp_path / "m"
    arguments = ["init", str(folder), "--node", "pi,port=/dev/ttyUSB0"]
    assert CliRunner().invoke(groundstation.cli.main, arguments).exit_code == 0
    return folder


def test_files_that_an_editor_of_windows_wrote_are_read(mission: Path) -> None:
    radio = mission / "radio.toml"
    radio.write_bytes((SHIPPED / "links" / "uhf-9k6.toml").read_bytes())
    node = mission / "boards" / "pi" / "node.toml"
    for path in (mission / "mission.toml", node, radio):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert load_mission(mission).nodes[0].name == load_node(node).name == "pi"
    assert load_link(radio).rate_up_bps == 9600


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "+nan"])
@pytest.mark.parametrize(
    ("file", "key"),
    [("mission.toml", "deadline_s"), ("boards/pi/node.toml", "encrypt"), ("mission.toml", "seed")],
)
def test_no_key_of_a_file_takes_a_number_that_is_none(file: str, key: str, value: str, mission: Path) -> None:
    change(mission / file, **{key: value})
    load = {"mission.toml": lambda: load_mission(mission)}.get(file, lambda: load_node(mission / file))
    with pytest.raises(ConfigError, match=rf"{key} = .*(nan|inf): (not a finite number|expected)"):
        load()


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1" + 400 * "0"])
@pytest.mark.parametrize("key", ["rate_up_bps", "delay_s", "tx_power_w", "bit_error_rate"])
def test_no_profile_holds_a_number_that_is_none(key: str, value: str, tmp_path: Path) -> None:
    text = (SHIPPED / "links" / "uhf-9k6.toml").read_text()
    lines = [f'{key} = {{ value = {value}, source = "c: a test" }}' if line.startswith(f"{key} ") else line
             for line in text.splitlines()]  # fmt: skip
    (tmp_path / "radio.toml").write_text("\n".join(lines))
    with pytest.raises(ProfileError, match=rf"radio\.toml: {key}"):
        load_link(tmp_path / "radio.toml")


@pytest.mark.parametrize(("nodes", "select", "quorum"), [(1, 1, 1), (2, 2, 2), (3, 3, 2), (5, 3, 2)])
def test_a_mission_written_by_hand_needs_no_numbers_of_boards(
    nodes: int, select: int, quorum: int, tmp_path: Path
) -> None:
    lines = ["[mission]", 'name = "by hand"']
    for number in range(1, nodes + 1):
        lines += ["[[node]]", f"id = {number}", f'name = "b{number}"', 'board = "raspberry-pi-4"']
        lines += ['link = "uhf-9k6"', f'port = "/dev/tty{number}"', f'key = "{number}.key"']
    (tmp_path / "mission.toml").write_text("\n".join(lines))
    mission = load_mission(tmp_path)
    assert (mission.select, mission.quorum) == (select, quorum)


def test_a_quorum_that_the_boards_cannot_make_is_named(mission: Path) -> None:
    text = (
        (mission / "mission.toml").read_text().replace("select = 1\n", "").replace("quorum = 1", "quorum = 2")
    )
    (mission / "mission.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"mission\.quorum = 2: must be at most select \(1\), got 2"):
        load_mission(mission)


# -- what the machine does ---------------------------------------------------------------------------------


def test_a_full_disk_ends_a_demo_with_one_line(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, "48k"):
        done = run("firmware_sim", "demo", "--out", str(disk / "demo"), code=1)
        assert done.stderr.count("\n") == 1
        assert "No space left on device" in done.stderr


@pytest.mark.parametrize("command", ["fleet", "ring"])
def test_a_full_disk_ends_a_simulation_with_one_line(command: str, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    small = ("--data", "digits", "--images", "30", "--out", str(disk / "out"))
    sized = {
        "fleet": ("--devices", "2", "--select", "1", "--rounds", "1"),
        "ring": ("--nodes", "3", "--epochs", "1"),
    }
    with small_disk(disk, "16k"):
        (disk / "ballast").write_bytes(bytes(8192))
        done = run("firmware_sim", command, *small, *sized[command], code=1)
        assert done.stderr.count("\n") == 1
        assert "No space left on device" in done.stderr


@pytest.mark.parametrize(
    ("program", "arguments"),
    [("groundstation", ("status", "{mission}")), ("groundstation", ("status", "{mission}", "--json"))],
)
@pytest.mark.parametrize("reader", ["gone", "full"])
def test_a_listing_that_cannot_be_written_is_no_traceback(
    program: str, arguments: tuple[str, ...], reader: str, mission: Path
) -> None:
    from groundstation.store.store import Store

    store = Store(mission / "mission.sqlite")
    store.begin(b"12345678", "m", 0, b"g")
    store.close()
    command = [sys.executable, "-m", program, *(word.format(mission=mission) for word in arguments)]
    if reader == "full":
        with Path("/dev/full").open("wb") as out:
            done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, text=True, timeout=20)
        assert done.returncode == 1
        assert done.stderr == "groundstation: No space left on device\n"
        return
    readable, writable = os.pipe()
    os.close(readable)
    done = subprocess.run(command, stdout=writable, stderr=subprocess.PIPE, text=True, timeout=20)
    os.close(writable)
    assert done.stderr == ""


@pytest.mark.parametrize("after_s", [0.4, 0.8, 1.6])
@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        ("firmware_sim", ("demo", "--out", "{folder}/demo")),
        ("firmware_sim", ("fleet", "--data", "digits", "--rounds", "99", "--out", "{folder}/fleet")),
        ("groundstation", ("serve", "{folder}/m")),
    ],
    ids=["demo", "fleet", "serve"],
)
def test_ctrl_c_is_quiet_at_any_moment(
    program: str, arguments: tuple[str, ...], after_s: float, mission: Path
) -> None:
    command = [sys.executable, "-m", program, *(word.format(folder=mission.parent) for word in arguments)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a shell's & ignores it
    ) as process:  # fmt: skip
        time.sleep(after_s)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert process.returncode in (0, 130, -signal.SIGINT)
    assert errors.strip().count("\n") == 0
    assert "Traceback" not in errors


def test_the_doctor_says_when_the_state_cannot_be_written(mission: Path) -> None:
    node = mission / "boards" / "pi" / "node.toml"
    change(node, port='"loop://"', source='"digits"')
    state = mission / "boards" / "pi" / "state"
    with small_disk(state, "256k"):
        remount(state, "ro")
        result = CliRunner().invoke(onboard.cli.main, ["doctor", str(node)])
    assert result.exit_code == 1
    (line,) = [line for line in result.output.splitlines() if " disk " in line]
    assert line.startswith("FAIL")


# -- what is no file, or none that a person wrote ------------------------------------------------------------


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "pipe.toml")
    return tmp_path / "pipe.toml"


@pytest.mark.parametrize("command", ["run", "doctor", "link"])
@pytest.mark.parametrize("what", ["pipe", "/dev/zero"])
def test_a_pipe_or_a_device_is_not_waited_for(command: str, what: str, pipe: Path) -> None:
    path = str(pipe) if what == "pipe" else what
    done = run("onboard", command, path, code=2)
    assert done.stderr == f"{path}: cannot be read: it is a pipe or a device, and no file\n"


def test_images_in_a_pipe_or_a_device_are_refused(pipe: Path, tmp_path: Path) -> None:
    for path in (pipe, Path("/dev/zero")):
        done = run(
            "groundstation", "init", str(tmp_path / "m"), "--node", "pi,port=/dev/a", "--data", f"npz:{path}",
            code=2,
        )  # fmt: skip
        assert f"{path}: it is a pipe or a device" in done.stderr
    assert not (tmp_path / "m").exists()


NO_TOML = {
    "nested": "a = " + 9999 * "[",
    "tables": "a = " + 9999 * "{a=",
    "digits": "a = " + 9999 * "9",
    "long": "# " + 17 * 2**20 * "x",
}


@pytest.mark.parametrize("text", NO_TOML.values(), ids=NO_TOML)
def test_what_no_parser_takes_is_one_line(text: str, mission: Path) -> None:
    node, radio = mission / "boards" / "pi" / "node.toml", mission / "radio.toml"
    for path in (node, mission / "mission.toml", radio):
        path.write_text(text)
    for arguments in (["status", str(mission)], ["serve", str(mission)], ["roll", str(mission), "pi"]):
        result = CliRunner().invoke(groundstation.cli.main, arguments)
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
        assert str(mission / "mission.toml") in result.stderr
    result = CliRunner().invoke(onboard.cli.main, ["run", str(node)])
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    with pytest.raises(ProfileError, match=r"radio\.toml: "):
        load_link(radio)


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        ("onboard", ("run", "a\nb")),
        ("groundstation", ("status", "a\nb")),
        ("groundstation", ("replay", "a\nb")),
        ("firmware-sim", ("board", "a\nb")),
        ("onboard", ("run", "\x1b[2Ja\nb", "--log", "x\ny")),
    ],
)
def test_a_line_is_one_whatever_it_quotes(program: str, arguments: tuple[str, ...]) -> None:
    result = CliRunner().invoke(PROGRAMS[program], list(arguments))
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert result.stderr.removesuffix("\n").isprintable()


def test_a_value_of_a_megabyte_is_quoted_in_part(mission: Path) -> None:
    change(mission / "mission.toml", model=f'"{10**6 * "x"}"')
    result = CliRunner().invoke(groundstation.cli.main, ["serve", str(mission)])
    assert result.exit_code == 2
    assert len(result.stderr) < 2100


@pytest.mark.parametrize("command", [("status",), ("serve",), ("links", "--once")], ids=" ".join)
def test_a_folder_with_a_name_that_no_file_can_have_is_bad_input(command: tuple[str, ...]) -> None:
    result = CliRunner().invoke(groundstation.cli.main, [command[0], 300 * "x", *command[1:]])
    assert result.exit_code == 2
    assert result.stderr.endswith("cannot be read: File name too long\n")


def test_a_key_file_that_an_editor_of_windows_wrote_is_read(mission: Path) -> None:
    from onboard.storage.keys import load_keys

    path = mission / "keys" / "pi.key"
    keys = load_keys(path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert load_keys(path) == keys


def test_the_doctor_and_run_say_the_same_of_a_state_that_is_no_folder(mission: Path) -> None:
    node = mission / "boards" / "pi" / "node.toml"
    change(node, port='"loop://"', source='"digits"')
    (mission / "boards" / "pi" / "state").touch()
    said = CliRunner().invoke(onboard.cli.main, ["doctor", str(node)])
    assert said.exit_code == 1
    assert f"FAIL  disk       {node.parent}/state: File exists\n" in said.stdout
    assert run("onboard", "run", str(node), code=1).stderr.endswith(f"{node.parent}/state: File exists\n")


@pytest.mark.parametrize("file", ["node.toml", "node.key", "rec"])
def test_a_recording_is_written_into_no_file_that_is_something_else(file: str, mission: Path) -> None:
    folder = mission / "boards" / "pi"
    (folder / "rec.1").write_text("the user's own")  # in the way of the file that is full
    change(folder / "node.toml", port='"loop://"', source='"digits"')
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    done = run("onboard", "run", str(folder / "node.toml"), "--record", str(folder / file), code=2)
    named = folder / (file if file != "rec" else "rec.1")
    assert done.stderr == f"--record {named}: is there, and no recording; give it another name\n"
    done = run("groundstation", "serve", str(mission), "--record", str(folder / file), code=2)
    assert done.stderr.endswith("is there, and no recording; give it another name\n")
    assert before == {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize(
    "command",
    [("groundstation", "replay", "rec"), ("groundstation", "init", "new", "--node", "pi,port=/dev/a"),
     ("groundstation", "roll", "m", "pi"), ("groundstation", "sample", "m", "pi")],
    ids=lambda command: command[1],
)  # fmt: skip
def test_a_full_disk_under_the_answer_is_not_taken_for_the_mission_s(
    command: tuple[str, ...], mission: Path
) -> None:
    (mission.parent / "rec").write_bytes(b"\0")
    program, *arguments = command
    with Path("/dev/full").open("wb") as out:
        done = subprocess.run(
            [sys.executable, "-m", program, *arguments], cwd=mission.parent, stdout=out,
            stderr=subprocess.PIPE, text=True, timeout=20,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "groundstation: No space left on device\n")


def test_links_without_a_standard_output_say_what_is_wrong(mission: Path) -> None:
    command = [
        "sh",
        "-c",
        'exec "$@" >&-',
        "sh",
        sys.executable,
        "-m",
        "groundstation",
        "links",
        str(mission),
    ]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=20)
    assert done.returncode == 1
    assert done.stderr == f"{mission}: no program runs on it\n"
