"""`firmware-sim`: boards, radios and cables for a laptop. Bad input gets one line and exit code 2."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
from collections.abc import Iterator
from typing import Any

import click

from firmware_sim.cable import IP_UDP_HEADER_BYTES, Cable, UdpEnd, open_ends, parse_end
from firmware_sim.channel import SIDES, Burst, Channel
from hw_profiles import load_link

_WINDOW_HELP = "Contact in seconds since the start; either may be empty; repeatable. Default: always open."


class OneLineErrors(click.Group):
    """A group whose complaints are one line on stderr, without the usage text, and exit code 2."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        kwargs["standalone_mode"] = False
        try:
            code = super().main(*args, **kwargs)
        except click.ClickException as error:
            message = error.format_message()
            # A group without a command complains with its whole help text, which needs no prefix.
            click.echo(message if message.startswith("Usage: ") else f"firmware-sim: {message}", err=True)
            code = error.exit_code
        except click.Abort:
            code = 130
        sys.exit(code)


@click.group(cls=OneLineErrors, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Emulated boards and radios: all runs on one laptop, and any board can be swapped for a real one."""


@main.command()
@click.option("--link", "link_name", required=True, help="Profile of the link: a name or a TOML file.")
@click.option("--ground", required=True, metavar="END", help="The ground's end: a path, or udp://HOST:PORT.")
@click.option("--board", required=True, metavar="END", help="The board's end, of the same kind.")
@click.option("--loss", type=float, help="Probability that a frame is lost, instead of the profile's.")
@click.option("--burst", metavar="LOSS:FRAMES", help="Losses in bursts: their mean share, their mean length.")
@click.option("--ber", type=float, help="Probability that a bit is wrong, instead of the profile's.")
@click.option("--duplicate", type=float, default=0.0, help="Probability that a frame arrives twice.")
@click.option("--reorder", type=float, default=0.0, help="Probability that later frames overtake a frame.")
@click.option("--window", "windows", multiple=True, metavar="OPEN:CLOSE", help=_WINDOW_HELP)
@click.option("--cut-after-bytes", type=int, help="Close the contact once, after so many bytes of the board,")
@click.option("--cut-seconds", type=float, help="... for so many seconds.")
@click.option("--seed", type=int, default=1, show_default=True, help="Repeats the fate of every frame.")
@click.option("--report-every", type=float, metavar="S", help="Print running totals as JSON lines.")
def cable(
    link_name: str,
    ground: str,
    board: str,
    loss: float | None,
    burst: str | None,
    ber: float | None,
    duplicate: float,
    reorder: float,
    windows: tuple[str, ...],
    cut_after_bytes: int | None,
    cut_seconds: float | None,
    seed: int,
    report_every: float | None,
) -> None:
    """Join two programs by an emulated radio link, with its rate, delay, losses and contact windows.

    An end is the path of a serial port to be made (a link to a pseudo-terminal), or udp://HOST:PORT to listen
    on; with ?peer=HOST:PORT only that address is heard and answered, without it whoever spoke last. Runs
    until SIGINT or SIGTERM.

    \b
    Example: a UHF pass that opens for 40 s, with 5 % of all frames lost:
      firmware-sim cable --link uhf-9k6 --ground /tmp/tty-ground --board /tmp/tty-board \\
        --loss 0.05 --window 0:40 --window 55:
    Example: an S-band link between two programs that speak UDP:
      firmware-sim cable --link sband-256k --ground udp://127.0.0.1:7001 --board udp://127.0.0.1:7002
    """
    try:
        if loss is not None and burst is not None:
            raise ValueError("--loss and --burst: give one")
        if (cut_after_bytes is None) != (cut_seconds is None):
            raise ValueError("--cut-after-bytes and --cut-seconds: give both or none")
        if report_every is not None and not report_every > 0:
            raise ValueError(f"--report-every {report_every}: must be above 0")
        link = load_link(link_name)
        ends = parse_end(ground), parse_end(board)
        channel = Channel(
            link,
            seed=seed,
            frame_loss=loss,
            bit_error_rate=ber,
            duplicate=duplicate,
            reorder=reorder,
            windows=[_pair(text, "--window", 0.0) for text in windows] or None,
            burst=None if burst is None else Burst(*_pair(burst, "--burst")),
            cut_after_bytes=cut_after_bytes,
            cut_s=cut_seconds or 0.0,
            overhead_bytes=IP_UDP_HEADER_BYTES if isinstance(ends[0], UdpEnd) else 0,
        )
        laid = Cable(channel, open_ends(*ends, link))
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    with contextlib.closing(laid):
        _run(laid, report_every)


def _run(laid: Cable, report_every: float | None) -> None:
    def print_totals(final: bool = False) -> bool:
        # Totals are cumulative: a reader that is slow misses a line, and does not stop the cable.
        if not final and not select.select([], [sys.stdout], [], 0)[1]:
            return True
        return _print(json.dumps(laid.report() | {"final": final}))

    with _stop_signals() as stop_fd:
        if report_every is not None:
            if print_totals():
                laid.run(stop_fd, print_totals, report_every)
            print_totals(final=True)
            return
        totals = laid.report()
        _print(f"{totals['link']}: ground {totals['ground']['port']}, board {totals['board']['port']}")
        laid.run(stop_fd, lambda: True)
        totals = laid.report()
        for side in SIDES:
            n = totals[side]
            _print(
                f"{side}: {n['frames']} frames, {n['bytes']} bytes, {n['airtime_s']:.1f} s on the air; "
                f"{n['lost']} lost, {n['collided']} collided, {n['cut']} outside a contact"
            )


def _print(line: str) -> bool:
    """Whether anybody still reads."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        # So that the interpreter's own flush at exit has somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


@contextlib.contextmanager
def _stop_signals() -> Iterator[int]:
    """A file descriptor that becomes readable at SIGINT or SIGTERM."""
    readable, written = os.pipe()
    os.set_blocking(written, False)
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    old_fd = signal.set_wakeup_fd(written)
    try:
        yield readable
    finally:
        signal.set_wakeup_fd(old_fd)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(readable)
        os.close(written)


def _pair(text: str, option: str, first_default: float | None = None) -> tuple[float, float]:
    """`A:B` as numbers; where a default for A is given, B defaults to infinity."""
    first, colon, second = text.partition(":")
    try:
        if not colon or ((not first or not second) and first_default is None):
            raise ValueError(text)
        return (
            float(first) if first else float(first_default or 0.0),
            float(second) if second else float("inf"),
        )
    except ValueError:
        raise ValueError(f"{option} {text}: must be two numbers joined by a colon") from None
