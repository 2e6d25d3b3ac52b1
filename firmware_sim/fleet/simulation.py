"""Federated rounds over hundreds of devices, in one process on a virtual clock, repeatable from a seed.

The rules are the ground daemon's (`onboard.mission.server`, `onboard.learn.federated.rounds`), every device
is the real agent, and every byte crosses an emulated link. Only the devices of a round are awake; the others
keep their state in their journals."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from firmware_sim.fleet.device import Device, DeviceUsage, Downlink, Place
from firmware_sim.fleet.result import RoundResult, draw, heading, line, summary
from firmware_sim.runs.folder import RunError
from firmware_sim.runs.live import RunDisplay, RunProgress
from firmware_sim.runs.run import RunConfig, RunFiles, SimulationRun
from firmware_sim.world.world import NEVER_S, World, digest_of
from hw_profiles import Board, Link
from onboard.codec.pack import unpack
from onboard.config import NODE_IDS, LinkEnd, NodeConfig
from onboard.data.images import Images, hold_out
from onboard.data.inspection import Shard
from onboard.learn.federated.rounds import Round, RoundState, UpdateFate, check_rule, choose, finished
from onboard.learn.graph import InferGraph, TrainGraph
from onboard.learn.scoring import evaluate
from onboard.learn.statistics import parted
from onboard.learn.training import Training
from onboard.mission.health import State, decode_health
from onboard.mission.objects import MODEL, asked_again, mean_validation
from onboard.mission.server import BadUpdate, MissionTerms, Server, averaged
from onboard.storage.files import write_durably
from onboard.wire.events import Arrived, Cancelled, Event, GroupAnswer, Message
from onboard.wire.messages import BadMessage, Reason, digest
from onboard.wire.security.seal import MAX_EPOCH

FILES = RunFiles(  # a run may go on for longer than it was first asked to
    "fleet.json", "rounds.jsonl", "model-*.bin", RoundResult, free=("rounds", "target")
)
TELL_EVERY = 200  # events of the world between two reports of progress
EMPTY_TRIES = 20  # a round that nobody answered as often as this fails


@dataclass(frozen=True, kw_only=True)
class FleetSettings:
    """The settings of a fleet. Raises RunError for values out of range or in conflict.

    Devices take `boards` and `links` in turn. `dropout`: probability that a chosen device is out of contact
    for the round; `staleness`: as in `onboard.mission.server.Server`; `shared_downlink`: as in `Downlink`;
    `validation`: as in NODE.toml; `rule`: a row of `RULES`."""

    model: str = "lenet5"
    training: Training
    devices: int
    select: int
    quorum: int
    rounds: int
    target: float | None = None
    deadline_s: float
    dropout: float = 0.0
    staleness: float | None = None
    seed: int = 0
    boards: tuple[Board, ...]
    links: tuple[Link, ...]
    shared_downlink: bool = False
    validation: float = 0.0
    rule: str = "mean"

    def __post_init__(self) -> None:
        if not 1 <= self.devices <= len(NODE_IDS):
            raise RunError(f"{self.devices} devices: a frame's address byte has room for {len(NODE_IDS)}")
        if not 1 <= self.quorum <= self.select <= self.devices:
            raise RunError(
                f"quorum {self.quorum}, select {self.select}, devices {self.devices}: each at most the next"
            )
        if self.shared_downlink and len(self.links) > 1:
            raise RunError(f"{len(self.links)} link profiles: a shared downlink is one link")
        try:
            check_rule(self.rule, self.training.method, sends_whole=self.training.rule.sends_whole)
        except ValueError as error:
            raise RunError(f"{error}, not {self.rule}") from None
        if not 0 <= self.dropout < 1:
            raise RunError(f"dropout {self.dropout}: must be at least 0 and below 1")
        for board in self.boards:
            if not board.train_flops:
                raise RunError(f"{board.name}: {board.title} cannot train")


@dataclass(frozen=True, kw_only=True)
class FleetConfig(RunConfig):
    """The settings of a fleet's run with its data and folder."""

    settings: FleetSettings

    def as_json(self) -> dict[str, Any]:
        """Returns everything that changes a result, as JSON."""
        settings = asdict(self.settings)
        settings["training"] = msgspec.to_builtins(self.settings.training)
        for key in ("boards", "links"):
            settings[key] = [profile["name"] for profile in settings[key]]
        for key, before in (("validation", 0.0), ("rule", "mean")):  # a run from before there was any goes on
            if settings[key] == before:
                del settings[key]
        if not settings["training"]["error_feedback"]:
            del settings["training"]["error_feedback"]
        split = {"split": "iid"} if self.alpha is None else {"split": "dirichlet", "alpha": self.alpha}
        return {"data": self.data, "images": self.images} | split | settings


@dataclass
class _Tally:
    payloads: dict[int, bytes] = field(default_factory=dict)  # updates, by node
    bits_up: list[float] = field(default_factory=list)
    width_up: list[float] = field(default_factory=list)
    judged: list[tuple[float | None, int]] = field(default_factory=list)  # on devices, with their samples
    gone: set[int] = field(default_factory=set)
    late: int = 0
    refused: int = 0


class Fleet:
    """A server, its devices and their links. shares: images by device from node 1; folder: for journals.
    Raises DataError where a device has too few images to hold some out."""

    def __init__(
        self, settings: FleetSettings, shares: Sequence[Images], test: Images, folder: Path,
        train: TrainGraph, infer: InferGraph,
    ) -> None:  # fmt: skip
        self.settings = settings
        self.results: list[RoundResult] = []
        self.packed = b""  # the model after the last finished round
        self._train, self._infer = train, infer
        self._test, self._measuring = parted(train, test)
        self._metric = train.objective.metric
        terms = MissionTerms(
            id=digest_of("mission", settings.seed)[:8], seed=settings.seed,
            deadline_s=settings.deadline_s, training=settings.training,
        )  # fmt: skip
        self._server = Server(
            terms, train, staleness=settings.staleness, rule=settings.rule,
            measures=self._measuring is not None,
        )  # fmt: skip
        group_key = digest_of("group", settings.seed) if settings.shared_downlink else None
        self._places = {}
        for node, share in enumerate(shares, start=1):
            images, held = hold_out(share, settings.validation)
            board, own = settings.boards[(node - 1) % len(settings.boards)], folder / str(node)
            link = settings.links[(node - 1) % len(settings.links)]
            config = NodeConfig(
                path=own / "node.toml", id=node, name=f"device-{node}", board=board, state=own,
                ground=LinkEnd(link=link, port="", key_path=own / "node.key"),
                shard=Shard(source="", shape=images.shape), cpu_share=board.cpu_share,
                memory_bytes=board.agent_memory_bytes, checkpoint_s=NEVER_S,
            )  # fmt: skip
            key, fates = digest_of("key", settings.seed, node), settings.seed * 256 + node
            self._places[node] = Place(config, images, held, key, group_key, fates)
        if len(self._places) != settings.devices:
            raise RunError(f"{settings.devices} devices, {len(self._places)} shares of images")
        self._awake: dict[int, Device] = {}
        self._world = World()
        self._downlink = None
        if group_key is not None:
            self._downlink = Downlink(self._world, settings.links[0], group_key, self._spread)
        self._boots: dict[int, int] = {}
        self._earlier_boots = 0  # an upper bound for each device in earlier runs
        self._askings: dict[int, int] = {}  # of the current round, by node
        self._questions: dict[int, bytes] = {}  # digests of the models sent, by node
        self._booked = DeviceUsage()  # by devices that sleep again
        self._told = DeviceUsage()  # by all finished rounds
        self._round: Round | None = None
        self._tally = _Tally()

    def resume(self, results: Sequence[RoundResult], packed: bytes) -> None:
        """Continues after an earlier run's rounds with empty disks: stragglers' unsent updates are lost."""
        self.results, self.packed = list(results), packed
        self._world.now = self.results[-1].clock_s
        # As many boots as an uninterrupted run can have made: no channel gets the same seed twice.
        self._earlier_boots = EMPTY_TRIES * len(self.results)
        self._boots = dict.fromkeys(self._places, self._earlier_boots)

    def save(self, path: Path) -> None:
        write_durably(path, self.packed)

    def _scores(self) -> list[float]:
        return [result.score for result in self.results]

    def play(self) -> Iterator[RunProgress | RoundResult]:
        """Runs the remaining rounds. Raises RunError."""
        settings = self.settings
        while finished(self._scores(), settings.rounds, settings.target, self._metric) is None:
            yield from self._play_round(len(self.results) + 1)
            yield self.results[-1]

    # a round

    def _play_round(self, number: int) -> Iterator[RunProgress]:
        settings = self.settings
        asked = self._chosen(number)
        model = self._server.model(number, self.packed)
        self._tally = _Tally()
        merged: set[int] = set()
        self._askings = dict.fromkeys(asked, 0)
        for attempt in range(EMPTY_TRIES):
            this = self._round = Round(
                number, frozenset(asked), settings.quorum, self._now + settings.deadline_s,
                merges=settings.staleness is not None, merged=merged,
            )  # fmt: skip
            for node in asked:
                draw = Random(digest_of("gone", settings.seed, number, attempt, node))
                self._wake(node, gone=draw.random() < settings.dropout)
            self._ask(model, asked)
            for happening in count():
                if this.judge(self._now) is not RoundState.OPEN:
                    break
                self._world.advance(this.deadline_s)
                if happening % TELL_EVERY == 0:
                    yield RunProgress(number, self._done(this), self._now)
            if this.verdict is not RoundState.EMPTY:
                break
            for node in this.lost:  # its training is lost: the next request is another object
                self._askings[node] = attempt + 1
        else:
            raise RunError(
                f"round {number}: asked {EMPTY_TRIES} times, nobody answered within {settings.deadline_s:g} s"
            )
        self._close(this)
        self._judge(this, model)

    def _chosen(self, number: int) -> tuple[int, ...]:
        return choose(self._places, self.settings.select, self.settings.seed, number)

    def _wake(self, node: int, *, gone: bool) -> None:
        if gone:
            self._tally.gone.add(node)
        if node not in self._awake or gone or self._awake[node].gone:
            self._let_go(node)
            self._boots[node] = self._boots.get(node, 0) + 1
            epoch = self._boots[node] - self._earlier_boots
            if epoch > MAX_EPOCH:
                raise RunError(f"device {node} has booted {MAX_EPOCH} times: go on in another run")
            self._awake[node] = Device(
                self._places[node], self._world, self._graph, self._handle,
                boot=self._boots[node], epoch=epoch, gone=gone,
            )  # fmt: skip
        else:
            self._world.wake(self._awake[node])

    def _ask(self, model: bytes, nodes: Iterable[int]) -> None:
        """Sends the round's model to each node, marked with how often its training was lost; a shared
        downlink sends it once, marked with the highest of these counts."""
        if self._downlink is not None:
            most = max(self._askings[node] for node in nodes)
            sent, self._askings = asked_again(model, most), dict.fromkeys(nodes, most)
            self._downlink.offer(sent, nodes)
            self._questions |= dict.fromkeys(nodes, digest(MODEL, sent))
            return
        for node in nodes:
            sent = asked_again(model, self._askings[node])
            self._questions[node] = self._awake[node].ground.offer(MODEL, sent, self._now)

    def _close(self, this: Round) -> None:
        """Cancels the requests that are still open, and lets those who answered hear so before they sleep."""
        if self._downlink is not None:
            self._downlink.stop()
        for device in self._awake.values():
            for name in device.ground.outgoing:
                device.ground.cancel(name, self._now)
            self._world.wake(device)
        until_s = self._now + self.settings.deadline_s
        while self._now < until_s and any(
            node in self._awake and not self._awake[node].resting(self._now) for node in this.answered
        ):
            self._world.advance(until_s)
        for node, device in list(self._awake.items()):
            if device.gone or device.resting(self._now):
                self._let_go(node)

    def _judge(self, this: Round, model: bytes) -> None:
        """Averages, quantizes, and evaluates exactly what the devices will be sent."""
        server, tally = self._server, self._tally
        sent = unpack(self.packed, server.layout) if self.packed else None
        self.packed = averaged(server, this.number, self.packed, tally.payloads, self._measuring)
        *_, score = evaluate(self._infer, server.weights(self.packed), self._test.x, self._test.y)
        total = sum((device.spent(self._now) for device in self._awake.values()), self._booked)
        if self._downlink is not None:
            total += self._downlink.used
        spent, self._told = total - self._told, total
        self.results.append(
            RoundResult(
                round=this.number, score=score.value, loss=score.loss, clock_s=self._now,
                bits_up=_mean(tally.bits_up), bits_down=8 * len(model) / server.layout.parameters,
                width_up=_mean(tally.width_up), width_down=0.0 if sent is None else sent.mean_width,
                bytes_up=spent.bytes_up, bytes_down=spent.bytes_down, energy_j=spent.energy_j,
                airtime_up_s=spent.airtime_up_s, airtime_down_s=spent.airtime_down_s,
                asked=len(this.asked), answered=len(this.answered), gone=len(tally.gone),
                merged=len(this.merged), late=tally.late, refused=tally.refused,
                validation=mean_validation(tally.judged),
            )
        )  # fmt: skip
        self._round = None

    # events

    @property
    def _now(self) -> float:
        return self._world.now

    def _spread(self, wire: bytes) -> None:
        for device in self._awake.values():
            device.overhear(wire)

    def _handle(self, device: Device, event: Event) -> None:
        if isinstance(event, Arrived):
            self._take(device, event)
        elif isinstance(event, Cancelled) and event.digest == self._questions.get(device.node):
            self._lose(device.node)
        elif isinstance(event, GroupAnswer) and self._downlink is not None:
            for told in self._downlink.handle(device.node, event):
                self._handle(device, told)
        elif isinstance(event, Message):
            try:
                health = decode_health(event.payload)
            except BadMessage:
                return
            node, this = device.node, self._round
            asking = self._askings.get(node, 0) & 0xFF
            if this and (health.state, health.round, health.asking) == (State.FAILED, this.number, asking):
                self._lose(node)

    def _take(self, device: Device, arrived: Arrived) -> None:
        node, number = device.node, len(self.results) + 1
        try:
            update, model = self._server.open(arrived.kind, arrived.payload, node, number)
        except BadUpdate:
            self._tally.refused += 1
            device.ground.refuse(arrived.digest, Reason.REFUSED, self._now)
            self._lose(node)
            return
        device.ground.accept(arrived.digest, self._now)
        outcome = UpdateFate.LATE
        if self._round is not None:
            was_asked = node in self._chosen(update.round)
            outcome = self._round.answer(node, self._now, of_round=update.round, was_asked=was_asked)
        if outcome not in (UpdateFate.TAKEN, UpdateFate.MERGED):
            self._tally.late += 1
            return
        self._tally.payloads[node] = arrived.payload
        self._tally.bits_up.append(8 * len(arrived.payload) / self._server.layout.parameters)
        self._tally.width_up.append(model.mean_width)
        self._tally.judged.append((update.validation, update.samples))

    def _lose(self, node: int) -> None:
        if self._round is not None:
            self._round.lose(node, self._now)

    def _let_go(self, node: int) -> None:
        if (device := self._awake.pop(node, None)) is not None:
            self._booked += device.spent(self._now)
            device.leave()

    def _graph(self, name: str) -> TrainGraph:
        return self._train if name == self._train.name else TrainGraph.load(name)

    def _done(self, this: Round) -> float:
        training = sum(
            self._awake[node].progress() for node in this.asked - this.answered if node in self._awake
        )
        return (len(this.answered | this.lost) + training) / len(this.asked)


def without_losses(link: Link, frame_loss: float) -> Link:
    return replace(link, frame_loss=frame_loss, bit_error_rate=0.0)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


class FleetRun(SimulationRun[RoundResult]):
    """A fleet's run. Raises DataError, GraphError, RunError, OSError."""

    def __init__(self, config: FleetConfig) -> None:
        settings = config.settings
        super().__init__(settings.model, config.out, FILES, config.as_json())
        metric = self.metric
        in_line = partial(summary, parameters=self.train.layout.parameters, metric=metric)
        stopped = "stopped; the same command goes on after round {}"
        title = f"{settings.training.method}, {settings.select} of {settings.devices} devices, {config.data}"
        picture = partial(draw, title=title, path=config.out / "rounds.png", metric=metric)
        self.display = RunDisplay(
            metric, "round", settings.rounds, heading(metric), partial(line, metric=metric), in_line, stopped,
            picture,
        )  # fmt: skip
        scores = [result.score for result in self.results]
        if finished(scores, settings.rounds, settings.target, metric):
            return
        shares, test = config.load(self.train, settings.devices, settings.seed)
        self.simulation = fleet = Fleet(settings, shares, test, self.disks, self.train, self.infer)
        if self.kept is not None:
            fleet.resume(self.results, self.kept.read_bytes())
