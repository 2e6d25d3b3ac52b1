"""The `firmware-sim` command: boards, radios and cables for a laptop. Bad input: one line, exit code 2."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from pathlib import Path
from typing import IO, Any, cast

import click
import msgspec

from firmware_sim.bench.cable import IP_UDP_HEADER_BYTES, Cable, UdpEnd, open_ends, parse_end
from firmware_sim.bench.faults import FAULTS, parse_faults
from firmware_sim.fleet.cli import fleet
from firmware_sim.ring.cli import ring
from firmware_sim.runs.options import data_options
from firmware_sim.world.channel import SIDES, Burst, Channel, Impairments
from hw_profiles import load_link
from onboard.cli import log_options, run_agent
from onboard.config import ends_of, load_own
from onboard.console.errors import OneLineErrors, finite, refused
from onboard.console.extras import require
from onboard.console.lines import Outlet, is_terminal, lines_to
from onboard.console.log import Format, say, start
from onboard.console.signals import stop_signals
from onboard.console.toml import ConfigError
from onboard.learn.networks import network_for

log = logging.getLogger(__name__)

_TOTALS_BYTES = 8192  # a few reports of a cable


@click.group("firmware-sim", cls=OneLineErrors,
             context_settings={"help_option_names": ["-h", "--help"], "show_default": True})  # fmt: skip
@click.version_option(package_name="spacedml-edge")
def main() -> None:
    """Emulated boards and radios: all runs on one laptop, and any board can be swapped for a real one."""


@main.command()
@click.option("--link", required=True, help="Profile of the link: a name or a TOML file.")
@click.option("--ground", required=True, metavar="END", help="The ground's end: a path, or udp://HOST:PORT.")
@click.option("--board", required=True, metavar="END", help="The board's end, of the same kind.")
@click.option("--loss", "frame_loss", type=float, show_default="the profile's",
              help="Probability that a frame is lost, instead of the profile's frame_loss.")  # fmt: skip
@click.option("--burst", metavar="LOSS:FRAMES", show_default="none",
              help="Losses in bursts (Gilbert's model): mean share lost, mean length in frames.")  # fmt: skip
@click.option("--ber", "bit_error_rate", type=float, show_default="the profile's",
              help="Probability that a bit is wrong, instead of the profile's bit_error_rate.")  # fmt: skip
@click.option("--duplicate", type=float, default=0.0, help="Probability that a frame arrives twice.")
@click.option("--reorder", type=float, default=0.0,
              help="Probability that a frame is held back for one to four of its air times.")  # fmt: skip
@click.option("--window", "windows", multiple=True, metavar="OPEN:CLOSE", show_default="always open",
              help="Contact in seconds since the start; either may be empty. Nothing passes outside. "
                   "Repeatable.")  # fmt: skip
@click.option("--cut-after-bytes", type=int, show_default="never",
              help="Close the contact once, after so many bytes of the board.")  # fmt: skip
@click.option("--cut-seconds", "cut_s", type=float, show_default="never",
              help="Close it for so many seconds.")  # fmt: skip
@click.option("--fault", "faults", multiple=True, metavar="NAME[=STRENGTH]", show_default="none",
              help=f"Something else that is wrong, both ways; repeatable: {', '.join(FAULTS)}.")  # fmt: skip
@click.option("--seed", type=int, default=1,
              help="The n-th frame of a side meets the same fate in every run with the same "
                   "seed.")  # fmt: skip
@click.option("--report-every", type=float, metavar="S", show_default="at the end",
              help="Print running totals as JSON lines every S seconds, and a last one at the "
                   "end.")  # fmt: skip
def cable(ground: str, board: str, report_every: float | None, **options: Any) -> None:
    """Joins two programs by an emulated radio link, with its rate, delay, losses and contact windows.

    An end is the path of a serial port to be made (a link to a pseudo-terminal), or udp://HOST:PORT to listen
    on; with ?peer=HOST:PORT only that address is heard and answered, without it whoever spoke last. Runs
    until SIGINT or SIGTERM.

    \b
    Example: a UHF pass that opens for 40 s, with 5 % of all frames lost:
      firmware-sim cable --link uhf-9k6 --ground /tmp/tty-ground --board /tmp/tty-board \\
        --loss 0.05 --window 0:40 --window 55:
    Example: an S-band link between two programs that speak UDP:
      firmware-sim cable --link sband-256k --ground udp://127.0.0.1:7001 --board udp://127.0.0.1:7002
    Example: a terminal that keeps XON and XOFF for itself:
      firmware-sim cable --link bench-serial-115k2 --ground /tmp/tty-ground --board /tmp/tty-board \\
        --fault eat-xonxoff
    """
    try:
        burst = options["burst"]
        if options["frame_loss"] is not None and burst is not None:
            raise ValueError("--loss and --burst: give one")
        if (options["cut_after_bytes"] is None) != (options["cut_s"] is None):
            raise ValueError("--cut-after-bytes and --cut-seconds: give both or none")
        if report_every is not None and not report_every > 0:
            raise ValueError(f"--report-every {report_every}: must be above 0")
        link, seed = load_link(options["link"]), options["seed"]
        ends = parse_end(ground), parse_end(board)
        are_datagrams = isinstance(ends[0], UdpEnd)
        impairments = msgspec.convert(
            options
            | {
                "windows": [_pair(text, "--window", 0.0) for text in options["windows"]] or None,
                "burst": None if burst is None else Burst(*_pair(burst, "--burst")),
                "cut_s": options["cut_s"] or 0.0,
                "overhead_bytes": IP_UDP_HEADER_BYTES if are_datagrams else 0,
            },
            Impairments,
        )
        faults = parse_faults(options["faults"], seed, datagrams=are_datagrams)
        laid = Cable(Channel(link, impairments, seed=seed), open_ends(*ends, link), faults)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    with contextlib.closing(laid):
        _run(laid, report_every)


@main.command()
@click.argument("node_toml", type=click.Path(path_type=Path))
@log_options("state and link counters")
def board(node_toml: Path, log_format: Format, report_every: float | None) -> None:
    """Runs the real agent of NODE_TOML as its board would: as slow and as small as the profile says.

    \b
    Example:
      firmware-sim board mission/boards/raspberry-pi-4/node.toml
    """
    from onboard.board.budget import Pace

    # The agent does not notice. The kernel limits its memory, and the runtime lets the next training step run
    # only when the profiled board would have finished this one: FLOP of the model / sustained FLOP/s of the
    # board / the agent's share of the CPU. A step itself runs at full speed, so three boards share a laptop.
    start(log_format)
    try:
        config = load_own(node_toml)
        profile = config.board
        if not profile.train_flops:
            raise ConfigError(f"{config.path}: node.board = {profile.name!r}: {profile.title} cannot train")
        say(
            log, "emulating", board=profile.name, train_gflops=profile.train_flops / 1e9,
            cpu_share=config.cpu_share, memory_mb=config.memory_bytes / 2**20,
            link=", ".join(dict.fromkeys(end.link.name for end in ends_of(config).values())),
        )  # fmt: skip
        run_agent(config, Pace(config.cpu_share, profile.train_flops), report_every)
    except ConfigError as error:
        raise click.UsageError(str(error)) from None


@main.command()
@data_options("digits", "board", 600, "the shares, the first weights and the air")
@click.option("--rounds", default=6, type=click.IntRange(min=1), help="Rounds.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("demo-out"),
              help="Folder for everything that the run writes. An earlier demo's is replaced; anything else "
                   "is left alone, and so is the folder of a demo that runs.")  # fmt: skip
@click.option("--real", multiple=True, metavar="BOARD=PORT", show_default="none",
              help="A real board in place of an emulated one, on the ground's PORT; repeatable.")  # fmt: skip
@click.option("--plain", is_flag=True,
              help="Lines instead of a live table; without a terminal it is always lines.")  # fmt: skip
def demo(real: tuple[str, ...], plain: bool, **options: Any) -> None:
    """Trains a model across a ground station and three emulated boards over radio-grade links.

    A Raspberry Pi 4 on a serial cable at 115,200 baud, a Jetson Nano on S-band at 256 kbit/s over UDP, and a
    Xiphos Q8S on half-duplex UHF at 9.6 kbit/s that loses 5 % of its frames and its contact once. Real
    processes, real ports, real rates; about three minutes.

    \b
    Examples:
      firmware-sim demo
      firmware-sim demo --data mnist --rounds 10 --out mnist-run
      firmware-sim demo --real raspberry-pi-4=/dev/ttyUSB0
    """
    require("onnxruntime", "rich", "matplotlib")
    from rich.console import Console

    from firmware_sim.demo.run import BOARDS, DemoConfig, run
    from firmware_sim.demo.view import DemoView, summary_table
    from firmware_sim.runs.folder import RunError
    from onboard.data.images import DataError
    from onboard.learn.graph import GraphError

    out, options["model"] = options["out"], options["model"] or network_for(options["data"])
    boards = _real_boards(real, [place.name for place in BOARDS])
    config = msgspec.convert(options | {"real": boards}, DemoConfig)
    # A terminal that is paused, or a pager, stops neither the run nor its end.
    with lines_to(sys.stdout, _unread) as lines:
        console = Console(file=cast(IO[str], Outlet(lines, sys.stdout)))
        try:
            summary = run(config, DemoView(console, plain=plain))
        except (DataError, GraphError, RunError) as error:
            raise click.UsageError(str(error)) from None
        except OSError as error:
            refused(error, out)
        except KeyboardInterrupt:
            console.print(f"stopped; what the run wrote is in {out}", markup=False)
            sys.exit(130)
        summary_table(summary, console)
        console.print(f"Everything the run wrote: {out}", markup=False)
    if summary["never_answered"]:
        sys.exit(1)


def _unread(lines: int) -> str:
    return "" if is_terminal(sys.stdout) else f"{lines} texts are left out: nobody read them in time\n"


main.add_command(fleet)
main.add_command(ring)


def _real_boards(options: tuple[str, ...], known: list[str]) -> dict[str, str]:
    found = {}
    for text in options:
        name, equals, port = text.partition("=")
        if not equals or not port or name not in known:
            raise click.UsageError(f"--real {text}: must be BOARD=PORT with BOARD one of {', '.join(known)}")
        if name in found:
            raise click.UsageError(f"--real {text}: {name} is given twice")
        found[name] = port
    return found


def _run(laid: Cable, report_every: float | None) -> None:
    # Totals are cumulative: a slow reader misses a line and does not stop the cable.
    # `totals` returns whether anybody still reads.
    with lines_to(sys.stdout, lambda missed: "", _TOTALS_BYTES) as out, stop_signals() as stop:

        def totals(final: bool = False) -> bool:
            out.put(json.dumps(laid.report() | {"final": final}) + "\n")
            return not out.unread

        if report_every is not None:
            totals()
            laid.run(stop.fd, totals, report_every)
            totals(final=True)
            return
        told = laid.report()
        out.put(f"{told['link']}: ground {told['ground']['port']}, board {told['board']['port']}\n")
        laid.run(stop.fd, lambda: True)
        for side, n in laid.report().items():
            if side in SIDES:
                out.put(
                    f"{side}: {n['frames']} frames, {n['bytes']} bytes, {n['airtime_s']:.1f} s on the air; "
                    f"{n['lost']} lost, {n['collided']} collided, {n['cut']} outside a contact\n"
                )


def _pair(text: str, option: str, first_default: float | None = None) -> tuple[float, float]:
    """Parses `A:B`. Where A has a default, either may be empty, and B defaults to infinity."""
    first, colon, second = text.partition(":")
    try:
        if not colon or ((not first or not second) and first_default is None):
            raise ValueError(text)
        return (
            finite(first) if first else float(first_default or 0.0),
            finite(second) if second else float("inf"),
        )
    except ValueError:
        raise ValueError(f"{option} {text}: must be two numbers joined by a colon") from None
