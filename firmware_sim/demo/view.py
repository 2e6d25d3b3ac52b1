"""The state of a running demo, and how it is shown: a live table or plain lines, then a summary."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from firmware_sim.runs.live import DOWN, UP, number_points, picture, print_line
from onboard.learn.objectives import METRICS, Metric, metric_of

PLAIN_EVERY_S = 15.0
BAR = 8  # characters


@dataclass
class Scene:
    """The state of a running demo: the last event of every process, and the bytes at every port."""

    boards: Sequence[str]
    parameters: int  # of the model
    started_s: float
    metric: Metric = METRICS["classify"]  # of the model's task
    board: dict[str, dict[str, Any]] = field(default_factory=dict)  # the agent's last "doing"
    cable: dict[str, dict[str, Any]] = field(default_factory=dict)  # the cable's last totals
    link: dict[str, dict[str, Any]] = field(default_factory=dict)  # the ground's view of each link
    asked: dict[str, set[int]] = field(default_factory=dict)  # rounds in which the ground asked a board
    answered: dict[str, set[int]] = field(default_factory=dict)  # rounds in which its update counted
    failure: dict[str, str] = field(default_factory=dict)  # the last reason that a board gave
    rounds: list[dict[str, Any]] = field(default_factory=list)  # the ground's "closed", with the bytes so far
    open_round: int = 0
    waiting: list[str] = field(default_factory=list)
    happened: list[str] = field(default_factory=list)  # worth a line
    finished: bool = False

    def handle(self, name: str, event: dict[str, Any]) -> None:
        kind, _, board = name.partition(":")
        what = event.get("event")
        if kind == "cable":
            self._note_contact(board, event)
            self.cable[board] = event
        elif what == "doing":
            self.board[board] = event
        elif what == "links":
            self.open_round, self.waiting = event["round"], event["waiting"]
            self.link |= {link["node"]: link for link in event["links"]}
        elif what == "round":
            self.open_round = event["number"]
            for asked in event["asked"]:
                self.asked.setdefault(asked, set()).add(event["number"])
        elif what in ("answered", "merged"):
            number = event["round"] if what == "answered" else event["now_at"]
            self.answered.setdefault(event["node"], set()).add(number)
        elif what == "board-failed":
            self.failure[event["node"]] = f"{event['failure']}: {event['why']}".rstrip(": ")
        elif what == "refused-by-board":
            self.failure[event["node"]] = f"refused the model: {event['why']}"
        elif what == "closed":
            self.rounds.append({**event, "bytes": self.total_bytes()})
        elif what == "finished":
            self.finished = True
        if event.get("level") in ("warning", "error"):
            fields = {k: v for k, v in event.items() if k not in ("at", "level", "from", "event")}
            told = " ".join(f"{key}={value}" for key, value in fields.items())
            self._note(f"{board or 'ground'}: {event['event']} {told}")

    def answers(self, board: str) -> tuple[int, int]:
        """Returns in how many rounds a board's update counted, and in how many it was asked."""
        return len(self.answered.get(board, ())), len(self.asked.get(board, ()))

    def never_answered(self) -> dict[str, str]:
        """Returns the boards that were asked and never answered, each with the reason as far as known."""
        reasons = {}
        for board in self.boards:
            answered, asked = self.answers(board)
            if asked and not answered:
                heard = self.link.get(board, {}).get("heard_s_ago") is not None
                quiet = "it was heard and sent no update" if heard else "never heard"
                reasons[board] = self.failure.get(board) or quiet
        return reasons

    def _note_contact(self, board: str, event: dict[str, Any]) -> None:
        if event["up"] != self.cable.get(board, {}).get("up", True):
            lost = "loss of signal, the contact closed in mid-transfer"
            self._note(f"{board}: {'in contact again' if event['up'] else lost}")

    def _note(self, text: str) -> None:
        self.happened.append(f"{self.elapsed_s():5.0f} s  {text}")

    def elapsed_s(self) -> float:
        return time.monotonic() - self.started_s

    def sent(self, board: str) -> dict[str, dict[str, float]]:
        """Returns bytes, frames, airtime and losses, counted at the ports: {"up": ..., "down": ...}."""
        if board in self.cable:
            sides = self.cable[board]
            return {"up": _counted(sides["board"]), "down": _counted(sides["ground"])}
        link = self.link.get(board, {})
        ways = (("up", "received", 0.0), ("down", "sent", link.get("airtime_s", 0.0)))
        return {
            way: {
                "bytes": link.get(f"bytes_{how}", 0), "frames": link.get(f"frames_{how}", 0),
                "airtime_s": airtime_s, "lost": 0,
            }
            for way, how, airtime_s in ways
        }  # fmt: skip

    def total_bytes(self) -> int:
        return sum(int(way["bytes"]) for board in self.boards for way in self.sent(board).values())

    def fp32_bytes(self) -> int:
        """What fp32 FedAvg sends for as many answers: all weights down and up at 4 B, without overhead."""
        return 2 * 4 * self.parameters * sum(self.answers(board)[0] for board in self.boards)


def _counted(side: dict[str, Any]) -> dict[str, float]:
    lost = side["lost"] + side["collided"] + side["cut"] + side["flipped"]
    return {"bytes": side["bytes"], "frames": side["frames"], "airtime_s": side["airtime_s"], "lost": lost}


class DemoView:
    """Shows a scene: in place on a terminal, else as a line for each event."""

    def __init__(self, console: Console, *, plain: bool = False) -> None:
        self._console = console
        self._plain = plain or not console.is_terminal
        self._live: Live | None = None
        self._rounds_told = self._happened_told = 0
        self._plain_due_s = 0.0

    @contextlib.contextmanager
    def live(self, scene: Scene) -> Iterator[None]:
        """Draws on each `show` inside the block; the last picture stays on the screen."""
        live = None if self._plain else Live(live_view(scene), console=self._console, refresh_per_second=4)
        with live or contextlib.nullcontext() as self._live:
            yield
            self.show(scene)

    def show(self, scene: Scene) -> None:
        if self._live is not None:
            self._live.update(live_view(scene))
        else:
            self._tell(scene)

    def _tell(self, scene: Scene) -> None:
        now = f"{scene.elapsed_s():5.0f} s  "
        told = scene.happened[self._happened_told :]
        told += (
            f"{now}round {row['round']}: {scene.metric.title} {scene.metric.told(row[scene.metric.key])}, "
            f"{row['bytes']:,} bytes on the wire so far"
            for row in scene.rounds[self._rounds_told :]
        )
        self._happened_told, self._rounds_told = len(scene.happened), len(scene.rounds)
        if scene.elapsed_s() >= self._plain_due_s:
            self._plain_due_s = scene.elapsed_s() + PLAIN_EVERY_S
            told.append(now + "; ".join(f"{board}: {_doing(scene, board)}" for board in scene.boards))
        for text in told:
            print_line(self._console, text)


def live_view(scene: Scene) -> Group:
    """Returns the boards' table, the line of rounds and the latest events, 100 columns wide."""
    boards = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("board", "doing", "transfer"):
        boards.add_column(heading)
    for heading in ("up", "on air", "down", "on air", "lost"):
        boards.add_column(heading, justify="right", no_wrap=True)
    for board in scene.boards:
        up, down = (scene.sent(board)[way] for way in ("up", "down"))
        frames, lost = up["frames"] + down["frames"], up["lost"] + down["lost"]
        boards.add_row(
            board, Text(_doing(scene, board), style=_colour(scene, board)), _transfer(scene, board),
            _kilobytes(up["bytes"]), f"{up['airtime_s']:.1f} s", _kilobytes(down["bytes"]),
            f"{down['airtime_s']:.1f} s", f"{100 * lost / frames:.0f} %" if frames else "",
        )  # fmt: skip
    rounds = Text("rounds  ", style="bold")
    for row in scene.rounds:
        rounds.append(f"{row['round']}: {scene.metric.told(row[scene.metric.key], 1)}   ", style="green")
    if not scene.finished:
        waiting = f"waiting for {', '.join(scene.waiting)}" if scene.waiting else "averaging"
        rounds.append(f"{scene.open_round}: {waiting}" if scene.open_round else "starting", style="dim")
    clock = Text(f"{scene.elapsed_s():.0f} s, {scene.total_bytes():,} bytes on the wire", style="dim")
    return Group(boards, Text(), rounds, clock, *(Text(line, style="yellow") for line in scene.happened[-4:]))


def summary_table(summary: Mapping[str, Any], console: Console) -> None:
    metric = metric_of(summary["metric"])
    title = f"Test {metric.title} of what the boards received"
    rounds = Table("round", metric.title, "bytes so far", title=title, box=None, title_justify="left")
    for number, (score, so_far) in enumerate(
        zip(summary[metric.key], summary["bytes_after_round"], strict=True), start=1
    ):
        rounds.add_row(str(number), metric.told(score), f"{so_far:,}")
    boards = Table("board", "answered", "up B", "air s", "down B", "air s", "frames", "lost",
                   title="On the wire, counted at the ports, headers and retransmissions included",
                   box=None, title_justify="left")  # fmt: skip
    for board, ways in summary["boards"].items():
        up, down = ways["up"], ways["down"]
        boards.add_row(
            board, _answers(summary, board), f"{up['bytes']:,}", f"{up['airtime_s']:.1f}",
            f"{down['bytes']:,}", f"{down['airtime_s']:.1f}", f"{up['frames'] + down['frames']:,}",
            f"{up['lost'] + down['lost']:,}",
        )  # fmt: skip
    console.print()
    console.print(rounds)
    console.print()
    console.print(boards)
    console.print(
        f"\n{summary['bytes']:,} bytes in all, both directions. fp32 FedAvg, same answers, payload alone: "
        f"{summary['fp32_fedavg_bytes']:,}. [bold]{summary['ratio']:.0f} times fewer[/], in "
        f"{summary['seconds']:.0f} s.",
        highlight=False,
    )
    for board, answers in summary["answers"].items():
        if answers["answered"] < answers["asked"]:
            why = summary["never_answered"].get(board) or answers["failure"] or "it was too late"
            missed = f"{board} answered in {_answers(summary, board)} rounds: {why}"
            console.print(missed, style="bold red", highlight=False, markup=False, soft_wrap=True)


def _answers(summary: Mapping[str, Any], board: str) -> str:
    answers = summary["answers"][board]
    return f"{answers['answered']} of {answers['asked']}"


def _doing(scene: Scene, board: str) -> str:
    event, cable = scene.board.get(board), scene.cable.get(board)
    if cable is None:  # a real board: all that is known of it came over the link
        heard_s = scene.link.get(board, {}).get("heard_s_ago")
        return "not heard yet" if heard_s is None else f"heard {heard_s:.0f} s ago"
    if event is None:
        return "starting"
    phase = str(event["phase"])
    doing = {"offering": "sending its update", "idle": "listening"}.get(phase, phase)
    if phase == "training" and "progress" in event:
        loss = f", loss {event['loss']:.2f}" if event["loss"] is not None else ""
        doing = f"training {100 * event['progress']:.0f} %{loss}"
    return doing if cable["up"] else f"no contact; {doing}"


def _colour(scene: Scene, board: str) -> str:
    if not scene.cable.get(board, {}).get("up", True):
        return "red"
    return "cyan" if scene.board.get(board, {}).get("phase") == "training" else ""


def _kilobytes(count: float) -> str:
    return f"{count / 1000:.1f} kB"


def _transfer(scene: Scene, board: str) -> str:
    link = scene.board[board]["link"] if board in scene.board else scene.link.get(board, {})
    objects = link.get("objects", [])
    if not objects:
        return ""
    this = objects[0]
    share = this["held"] / max(1, this["fragments"])
    arrow = "down" if this["incoming"] else "up"
    done = round(share * BAR)
    return f"{arrow:<4} {'━' * done}{'·' * (BAR - done)} {100 * share:3.0f} %"


def draw(summary: Mapping[str, Any], path: Path) -> None:
    """Writes a PNG: scores against bytes on the wire, and each board's share of the bytes."""
    metric = metric_of(summary["metric"])
    with picture(path, 2, (10, 4)) as (scores, shares):
        kilobytes = [count / 1000 for count in summary["bytes_after_round"]]
        plotted = [metric.plotted(value) for value in summary[metric.key]]
        scores.plot(kilobytes, plotted, marker="o", color=UP)
        number_points(scores, kilobytes, plotted)
        scores.set(
            xlabel="kB on the wire so far, all boards, both directions", ylabel=f"test {metric.axis}",
            title=f"{summary['model']} on {summary['data']}: {metric.title} after each round",
        )  # fmt: skip
        scores.grid(alpha=0.3)
        boards = list(summary["boards"])
        up = [summary["boards"][board]["up"]["bytes"] / 1000 for board in boards]
        down = [summary["boards"][board]["down"]["bytes"] / 1000 for board in boards]
        shares.barh(boards, up, color=UP, label="up")
        shares.barh(boards, down, left=up, color=DOWN, label="down")
        shares.invert_yaxis()
        shares.margins(x=0.25)  # room for the legend
        shares.legend(loc="upper right")
        shares.set(
            xlabel="kB, headers and retransmissions included",
            title=f"{summary['ratio']:.0f} times fewer bytes than fp32 FedAvg",
        )
