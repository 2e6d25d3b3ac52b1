"""A wrong key, a replayed frame, noise and a truncated object change nothing on the ground but a counter; the
true board is served as if nothing had been."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from firmware_sim.runs.processes import free_ports
from hw_profiles import load_link
from onboard.agents.federated_state import FederatedState
from onboard.codec import alq
from onboard.codec.dense import Dense
from onboard.codec.layout import Layout
from onboard.codec.layout import layout as layout_of
from onboard.codec.model import PREFIX
from onboard.codec.pack import pack
from onboard.codec.quantized import HEADER
from onboard.learn.graph import TrainGraph
from onboard.mission.health import Health, encode_health
from onboard.mission.objects import UPDATE, Update, decode_task, encode_object
from onboard.storage.journal import Journal, LinkState
from onboard.storage.keys import load_keys, new_key
from onboard.wire.config import Identity, Medium, Security, SessionState
from onboard.wire.events import Arrived, Event, Rekeyed
from onboard.wire.framing import frame as framing
from onboard.wire.framing.frame import Type
from onboard.wire.security.seal import Sealer
from onboard.wire.session import Session
from tests.missions.bench import MissionBench, bench, change

HEALTH = encode_health(Health(state=0, round=1, uptime_s=1, airtime_s=0.0, energy_j=0.0, cpu_s=0.0))


@dataclass
class Voice:
    """Somebody at the board's end of the link, with a key of his own or the board's."""

    socket: socket.socket
    session: Session
    sent: list[bytes] = field(default_factory=list)
    heard: list[Event] = field(default_factory=list)

    def speak(self, until: Callable[[], Any], timeout_s: float = 20.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not until():
            now = time.monotonic()
            assert now < deadline, self.heard
            while (frame := self.session.transmit(now)) is not None:
                self.socket.send(frame)
                self.sent.append(frame)
            try:
                frame = self.socket.recv(2048)
            except (TimeoutError, ConnectionRefusedError):
                continue
            self.heard += self.session.receive(frame, now)
            for event in self.heard:
                if isinstance(event, Rekeyed) and self.session.salt != event.salt:
                    self.session.rekey(event.salt)
                if isinstance(event, Arrived) and event.digest not in self.session.done:
                    self.session.accept(event.digest, now)


@contextmanager
def ground_and_voice(on: MissionBench, *, stranger: bool) -> Iterator[Voice]:
    """A ground daemon on UDP and a voice at the other end."""
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as end:
        end.bind(("127.0.0.1", 0))
        end.settimeout(0.05)
        ground = "127.0.0.1", *free_ports(1)
        end.connect(ground)
        here, there = end.getsockname()[1], ground[1]
        over = f"udp://127.0.0.1:{here}?bind=127.0.0.1:{there}"
        back = f"udp://127.0.0.1:{there}?bind=127.0.0.1:{here}"
        change(on.mission / "mission.toml", port=f'"{over}"', link='"bench-udp"')
        change(on.node_toml, port=f'"{back}"', profile='"bench-udp"')
        key = new_key() if stranger else load_keys(on.node_toml.parent / "node.key")
        session = Session(
            Identity(1, 0, primary=False),
            Medium(load_link("bench-udp")),
            Security(key, nonce=os.urandom),
            SessionState(epoch=1),
            now=time.monotonic(),
        )
        on.start_ground()
        on.until(lambda: on.said("ground", "port-open"))
        yield Voice(end, session)


@contextmanager
def known_voice(on: MissionBench, until: Callable[[Voice], bool]) -> Iterator[Voice]:
    """A voice with the board's key, which has said how it is and spoken until that holds."""
    with ground_and_voice(on, stranger=False) as voice:
        voice.session.send_message(HEALTH, time.monotonic())
        voice.speak(lambda: until(voice))
        yield voice


def unchanged(before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Whether two pictures of the mission tell the same story, counters aside. When a round will end is noted
    again and again, and a second early."""
    ends = [[row.pop("deadline_at") for row in picture["rounds"]] for picture in (before, after)]
    assert ends[1] == pytest.approx(ends[0], abs=3.0)
    return all(before[key] == after[key] for key in ("id", "finished_at", "rounds")) and [
        (node["heard_at"], node["health"]) for node in before["nodes"]
    ] == [(node["heard_at"], node["health"]) for node in after["nodes"]]


def then_the_true_board_is_served(on: MissionBench, *, epoch: int) -> None:
    Journal(on.node_toml.parent / "state", FederatedState).save(
        FederatedState(links={0: LinkState(epoch=epoch)})
    )
    on.start_board()
    on.finish()
    assert [row["state"] for row in on.status()["rounds"]] == ["closed", "closed"]


def test_a_wrong_key_and_noise(tmp_path: Path) -> None:
    with bench(tmp_path) as on:
        with ground_and_voice(on, stranger=True) as voice:
            on.until(lambda: on.said("ground", "round"))
            before = on.status()
            stranger = Sealer(new_key(), source=1, destination=0, epoch=9)
            for _ in range(20):
                voice.socket.send(stranger.seal(Type.MSG, HEALTH))
                voice.socket.send(b"noise that is no frame at all")
            voice.speak(lambda: len(voice.sent) == 2)  # HELLO, which nobody answers
            on.until(lambda: on.link().get("bad_tags") == 2 and on.link()["malformed"] == 20)
            assert on.link()["unproven"] == 20
            assert on.link()["frames_received"] == 0
            assert unchanged(before, on.status())
        then_the_true_board_is_served(on, epoch=0)


def test_a_replayed_frame(tmp_path: Path) -> None:
    with bench(tmp_path) as on:
        with known_voice(on, lambda _: on_link(on, "frames_received") >= 1) as voice:
            frames = [frame for frame in voice.sent if not framing.is_hello(frame)]
            on.until(lambda: on.status()["nodes"][0]["heard_at"])  # what was heard is stored within 5 s
            accepted = on_link(on, "frames_received")
            before = on.status()
            for frame in frames * 5:
                voice.socket.send(frame)
            on.until(lambda: on_link(on, "replays") == 5 * len(frames))
            assert on_link(on, "frames_received") == accepted
            assert unchanged(before, on.status())
        then_the_true_board_is_served(on, epoch=1)


def test_updates_that_must_not_be_taken(tmp_path: Path) -> None:
    with bench(tmp_path) as on:
        with known_voice(on, lambda voice: any(isinstance(e, Arrived) for e in voice.heard)) as voice:
            [model] = [event for event in voice.heard if isinstance(event, Arrived)]
            for refused, (damage, says) in enumerate(DAMAGES.items(), start=1):
                voice.session.offer(UPDATE, bad_update(model.payload, damage), time.monotonic())
                voice.speak(lambda refused=refused: on_link(on, "updates_refused") == refused)
                [why] = [event["why"] for event in on.said("ground", "update-refused")][refused - 1 :]
                assert says in why
            assert not on.said("ground", "answered")
            assert on.status()["rounds"][0]["state"] == "open"
        then_the_true_board_is_served(on, epoch=1)


DAMAGES = {  # and what the ground says of it
    "truncated": "ask for more",
    "an infinite step": "step is [inf",
    "an infinite coordinate": "a coordinate is not finite",
    "not a number": "not finite",
    "weights of 1e30": "dense weights, asked for was spacedml-fast",
    "wrong shapes": "packed for the layout",
    "a gigabyte in a hundred bytes": "zstd frame of 1073741824 bytes",
    "a round to come": "has not begun",
    "another node": "came over the link",
    "another mission": "is not this one",
}


def bad_update(model: bytes, damage: str) -> bytes:
    """An update of the true board's key, right in all but one thing."""
    task, _ = decode_task(model)
    layout = TrainGraph.load(task.model).layout
    packed = bad_weights(layout, damage)
    update = Update(
        mission=b"another." if damage == "another mission" else task.mission,
        round=task.round + 1 if damage == "a round to come" else task.round,
        node=2 if damage == "another node" else 1,
        samples=100, loss=0.5, cpu_s=1.0, energy_j=1.0, train_s=1.0,
    )  # fmt: skip
    return encode_object(update, packed)


def bad_weights(layout: Layout, damage: str) -> bytes:
    if damage == "wrong shapes":
        layout = layout_of({"dense": (4, 24)})
    weights = {t.name: np.full(t.shape, 0.01, np.float32) for t in layout.tensors}
    if damage == "not a number":
        packed = pack(Dense(layout, weights))
        return packed[:-4] + np.array([np.nan], "<f4").tobytes()
    if damage == "a gigabyte in a hundred bytes":  # zstd: content size, then one run-length block
        frame = b"\x28\xb5\x2f\xfd\xa0" + (1 << 30).to_bytes(4, "little") + b"\x23\0\0\0"
        return PREFIX.pack(Dense.format, layout.digest) + b"\1" + frame
    if damage == "weights of 1e30":
        return pack(Dense(layout, {name: values * np.float32(1e32) for name, values in weights.items()}))
    model = alq.quantize(layout, weights, alq.allocate(layout, weights, bits_per_weight=0.05, max_bases=1))
    if damage == "an infinite coordinate":  # a hostile packer does not look
        bases = next(bases for bases in model.grouped.values() if bases.used.any())
        bases.alphas[bases.used] = np.inf
        with patch("onboard.codec.quantized.rounded", lambda alphas: alphas):
            return pack(model)
    packed = pack(model)
    if damage == "truncated":
        return packed[: len(packed) // 2]
    if damage == "an infinite step":  # the first raw tensor's step, a float16 (codec/quantized.py)
        at = HEADER.size + HEADER.unpack_from(packed)[2]
        return packed[:at] + b"\x00\x7c" + packed[at + 2 :]
    return packed


def on_link(on: MissionBench, counter: str) -> int:
    for name, event in on.crew.listen(0.0):
        on.seen.setdefault(name, []).append(event)
    return int(on.link().get(counter, 0))
