"""What is known of a running demo: the last that every process said, and the bytes at every port."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

FLOAT32_BYTES = 4


@dataclass
class Scene:
    boards: Sequence[str]
    parameters: int  # of the model
    started_s: float
    board: dict[str, dict[str, Any]] = field(default_factory=dict)  # the agent's last "doing"
    cable: dict[str, dict[str, Any]] = field(default_factory=dict)  # the cable's last totals
    link: dict[str, dict[str, Any]] = field(default_factory=dict)  # the ground's view of each link
    asked: dict[str, set[int]] = field(default_factory=dict)  # in which rounds the ground has asked a board
    answered: dict[str, set[int]] = field(default_factory=dict)  # and in which an update of it counted
    failure: dict[str, str] = field(default_factory=dict)  # why a board did not, in its own words, the last
    rounds: list[dict[str, Any]] = field(default_factory=list)  # the ground's "closed", with the bytes so far
    open_round: int = 0
    waiting: list[str] = field(default_factory=list)
    happened: list[str] = field(default_factory=list)  # worth a line
    finished: bool = False

    def handle(self, name: str, event: dict[str, Any]) -> None:
        """Takes one JSON line of one process."""
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
        """In how many rounds an update of a board counted, and in how many it was asked."""
        return len(self.answered.get(board, ())), len(self.asked.get(board, ()))

    def never_answered(self) -> dict[str, str]:
        """The boards that were asked and have never answered, and why as far as it is known."""
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
        """Seconds since the processes were started."""
        return time.monotonic() - self.started_s

    def sent(self, board: str) -> dict[str, dict[str, float]]:
        """Bytes, frames, airtime and losses each way, counted at the ports: {"up": ..., "down": ...}."""
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
        """Everything every port has sent so far, both directions."""
        return sum(int(way["bytes"]) for board in self.boards for way in self.sent(board).values())

    def fp32_bytes(self) -> int:
        """What fp32 FedAvg sends for as many answers: every weight down and up, 4 B each; no header, no
        retransmission."""
        answers = sum(self.answers(board)[0] for board in self.boards)
        return answers * 2 * FLOAT32_BYTES * self.parameters


def _counted(side: dict[str, Any]) -> dict[str, float]:
    lost = side["lost"] + side["collided"] + side["cut"] + side["flipped"]
    return {"bytes": side["bytes"], "frames": side["frames"], "airtime_s": side["airtime_s"], "lost": lost}
