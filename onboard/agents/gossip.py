"""A node's life among neighbours: train, exchange, mix. A dead neighbour costs its edge, and nothing else.

Like the federated agent, it is handed events and the time, runs one training step when the runtime says so,
and never waits. Every few batches it opens an exchange on every edge that is in contact and has none open. It
trains on when these are complete or its patience is over; an exchange that completes later is mixed with the
next. After its last epoch it opens none but answers its neighbours, and is over when it has not heard them
for `patience_s` in contact. A node that trains nothing, such as a ground station, answers for ever."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from onboard.agents.gossip_memory import Checkpoint, Checkpoints, ExchangeLog, GossipState, replay
from onboard.agents.gossip_trust import LEFT_OUT_S, Trust
from onboard.codec.sparse import BadExchange
from onboard.config import GossipConfig
from onboard.console.log import say
from onboard.learn.gossip.algorithms import Begin
from onboard.learn.gossip.descent import Descent
from onboard.learn.gossip.exchange import ImplausibleExchange, Message
from onboard.learn.gossip.outliers import LossWatch
from onboard.mission.health import NO_MEMORY
from onboard.mission.objects import GOSSIP
from onboard.storage.journal import Journal
from onboard.wire.events import Arrived, Cancelled, Corrupt, Delivered, Event, PeerHeard, QuotaUsage, Rekeyed
from onboard.wire.events import Message as LinkMessage
from onboard.wire.messages import Reason
from onboard.wire.session import Session

log = logging.getLogger(__name__)

EXCHANGES = "exchanges"
ROLLBACKS = 3  # without a checkpoint between them: then it is the training itself that fails
LOG_SHARE = 4  # a log that grew by so many checkpoints is worth one: it bounds the disk and a replay


@dataclass(frozen=True)
class GossipTraining:
    """What a node trains by itself, between exchanges."""

    descent: Descent
    """The model, its images and its optimizer; without images, the model is only held."""
    flops_a_step: float
    """What one step costs, in FLOP."""
    begin: Begin
    """Makes the algorithm that the node gossips by."""


class GossipPhase(IntEnum):
    TRAINING = 0
    EXCHANGING = 1  # waits for the exchanges that it has just opened
    LINGERING = 2  # all epochs are done: answers its neighbours
    OVER = 3
    FAILED = 4  # a step could not be run: it opens no exchange any more
    HOLDING = 5  # trains nothing: answers its neighbours


class GossipAgent:
    """One node. `sessions` are its links by neighbour; `journal` and `exchanges` are its memory."""

    def __init__(
        self,
        config: GossipConfig,
        sessions: dict[int, Session],
        journal: Journal[GossipState],
        known: GossipState,
        exchanges: ExchangeLog,
        training: GossipTraining,
    ) -> None:
        self.config, self.descent = config, (descent := training.descent)
        self.phase, self.cpu_s = GossipPhase.TRAINING, 0.0
        self.trust = Trust(sessions)
        self.sessions, self.journal, self.known = sessions, journal, known
        self.exchanges, self._flops_a_step = exchanges, training.flops_a_step
        self._checkpoints = Checkpoints(config.state, config.id, descent.vector.size)
        self._begin, self.gossip = training.begin, training.begin({}, {})
        self._unsent: dict[int, Message] = {}  # opened, and not on the disk yet
        self._offered: dict[int, bytes] = {}  # digests of what was sent in the open exchanges
        self._awaited: frozenset[int] = frozenset()
        self._quiet_since_s = self._patient_until_s = self._checkpoint_due_s = 0.0
        self._losses: list[float] = []  # of this epoch
        self._watch, self._rollbacks = LossWatch(descent.guess_loss), 0  # since the last checkpoint
        self._again_at_s: dict[int, float] = {}  # when those that refused what was sent are tried again
        self._kept = -1  # exchanges that the model of the last checkpoint has

    # restart

    def resume(self, now: float) -> None:
        """Goes on from its checkpoint, with all that was exchanged since. Raises OSError."""
        kept, mixed = self._checkpoints.load(self.known.was_checkpointed), 0
        if kept is not None:
            self.descent.restore(kept.vector, kept.velocity, kept.batches)
            self.gossip = self._begin(kept.numbers, kept.memory)
        elif self._checkpoints.was_lost and any(map(self.exchanges.first, self.sessions)):
            # Else the log has all that was mixed into the first model.
            for peer, session in self.sessions.items():
                session.forget(*session.done)  # what was taken has gone with the model that it was mixed into
                self.exchanges.forget(peer)
        for peer in self.sessions:
            try:
                mixed += replay(self.exchanges, self.gossip, peer, self.descent.vector)
            except BadExchange as error:  # the configuration is another one
                self.trust.refuse(peer, f"from the log: {error}", now)
                self.exchanges.forget(peer)
            if self.gossip.message(peer):
                self._offer(peer, now)
        self.gossip.start(self.descent.vector)
        if self.descent.batches or mixed:
            say(log, "resumed", phase="training", batches=self.descent.batches, mixed=mixed)
        self._checkpoint_due_s = now + self.config.checkpoint_s
        self._go_on(now)
        if kept is None:
            self._checkpoint(now)  # the first model: there is always one to go back to

    # handle

    def handle(self, peer: int, event: Event, now: float) -> None:
        """Takes one event of a neighbour's link. Raises OSError (disk full): the caller tells the same event
        again first, as nothing may be mixed that is not durable."""
        if isinstance(event, Arrived):
            self._take(peer, event, now)
        elif isinstance(event, Delivered) and event.digest == self._offered.get(peer):
            self.gossip.delivered(peer)
        elif isinstance(event, Cancelled) and event.digest == self._offered.get(peer):
            self.exchanges.forget(peer, self.gossip.numbers[peer], "sent")
            self.gossip.refused(peer)
            del self._offered[peer]
            self._again_at_s[peer] = now + LEFT_OUT_S
            say(log, "exchange-cancelled", level=logging.WARNING, peer=peer, why=event.reason)
        elif isinstance(event, PeerHeard) and peer in self._offered:
            self._offer(peer, now)  # it may have lost what it took: it then learns the number from this
        elif isinstance(event, Rekeyed):
            self.sessions[peer].rekey(event.salt)
            say(log, "rekeyed", peer=peer, again=event.again)
        elif isinstance(event, QuotaUsage):
            self.known.links[peer].spent = event
            self.journal.save(self.known)
        elif isinstance(event, Corrupt):
            say(log, "corrupt", level=logging.WARNING, peer=peer, object=event.digest.hex())
        elif isinstance(event, LinkMessage):
            self.trust.refuse(peer, "a message: a node that gossips takes objects only", now)

    def _take(self, peer: int, arrived: Arrived, now: float) -> None:
        """Checks a neighbour's values, makes them durable, then acknowledges them."""
        try:
            if peer in self.trust.left_out(now):
                raise BadExchange("left out")
            if arrived.kind != GOSSIP:
                raise BadExchange(f"kind {arrived.kind} is not for a node that gossips")
            number = self.gossip.take(peer, arrived.payload)
        except BadExchange as error:
            self.trust.refuse(peer, str(error), now)
            if isinstance(error, ImplausibleExchange) and self.trust.strike(peer):
                self._leave_out(peer, str(error), now)
            self.sessions[peer].refuse(arrived.digest, Reason.REFUSED, now)
            return
        if not self.gossip.message(peer):  # the neighbour was further on: what was opened here is over
            self._unsent.pop(peer, None)
            self._offered.pop(peer, None)
        self.exchanges.keep(peer, number, "taken", arrived.payload)
        self.sessions[peer].accept(arrived.digest, now)

    def _leave_out(self, peer: int, why: str, now: float) -> None:
        self.trust.leave_out(peer, why, now)
        self.gossip.leave(peer)
        self.exchanges.forget(peer, self.gossip.numbers[peer], "taken")

    # train

    @property
    def trains(self) -> bool:
        return self.phase is GossipPhase.TRAINING

    def advance(self) -> float:
        """Runs one training step; returns its cost in FLOP. Raises what the graph raises."""
        loss = self.descent.step()
        self._losses.append(loss)
        self._watch.add(loss)
        return self._flops_a_step

    def charge(self, cpu_s: float, now: float) -> None:
        """Books what the step cost, then exchanges or goes on. Raises OSError (disk full)."""
        self.cpu_s += cpu_s
        if self._watch.has_jumped and self._roll_back(f"a loss of {self._losses[-1]:.3g}", now):
            return
        descent, every = self.descent, self.config.gossip.every
        if descent.batches % descent.batches_an_epoch == 0:
            if now >= self._checkpoint_due_s:
                self._checkpoint(now)
            loss = sum(self._losses) / len(self._losses)
            self._losses.clear()
            sent = sum(session.bytes_sent for session in self.sessions.values())
            say(
                log, "epoch", epoch=round(descent.epochs), loss=loss, exchanges=self.gossip.exchanges,
                bytes_sent=sent,
            )  # fmt: skip
        if descent.batches % every == 0:
            self._exchange(now)
        elif self._finished:
            self._go_on(now)

    def fail(self, error: Exception, now: float) -> None:
        """Handles a step that could not run (no memory, a loss that is no number): rolls the model back if a
        neighbour may have spoiled it, else stops training."""
        if isinstance(error, ValueError) and self._roll_back(str(error), now):
            return
        self.phase = GossipPhase.FAILED
        say(log, "training-failed", level=logging.ERROR, why=str(error) or type(error).__name__)

    def relieve(self, now: float) -> str:
        """Stops training, but answers others; returns who lacks memory, for the log."""
        if self.trains:
            self.fail(MemoryError(NO_MEMORY), now)
        return NO_MEMORY

    @property
    def _finished(self) -> bool:
        epochs = self.config.gossip.epochs
        return 0 < epochs * self.descent.batches_an_epoch <= self.descent.batches

    def _go_on(self, now: float) -> None:
        self._quiet_since_s = now
        if not self.config.gossip.trains:
            self.phase = GossipPhase.HOLDING
        else:
            self.phase = GossipPhase.LINGERING if self._finished else GossipPhase.TRAINING

    # exchange, mix

    def _exchange(self, now: float) -> None:
        self._mix(now)
        for peer in [peer for peer, at in self._again_at_s.items() if now >= at]:
            del self._again_at_s[peer]
            self.gossip.try_again(peer)
        self._patient_until_s = now + self.config.gossip.patience_s
        self.phase = GossipPhase.EXCHANGING
        self._awaited = self._open(self.sessions, now) & {
            each.id for each in self.config.neighbours if each.wait
        }
        self.tick(now)

    def _open(self, peers: Collection[int], now: float) -> frozenset[int]:
        """Opens exchanges with peers in contact, as what waits gets stale; returns with whom."""
        near = set(peers) - self.trust.left_out(now)
        near = {peer for peer in near if self.sessions[peer].contacts.is_up(now)}
        try:
            opened = self.gossip.open(self.descent.vector, near)
        except (ValueError, MemoryError) as error:  # a model that is not finite, or too large for its form
            self.fail(error, now)
            return frozenset()
        self._unsent |= opened
        return frozenset(opened)

    def tick(self, now: float) -> None:
        """Does what time and complete exchanges bring about. Raises OSError (disk full): call it again."""
        self._send(now)
        if self.phase is GossipPhase.EXCHANGING:
            if now >= self._patient_until_s or not self._waits_for(now):
                self._mix(now)
                self._go_on(now)
        elif self.phase in (GossipPhase.LINGERING, GossipPhase.HOLDING):
            self._mix(now)
            self._open(self.gossip.asked, now)
            self._send(now)
            if now < self.wakeup(now):
                return
            if self.phase is GossipPhase.HOLDING:
                self._checkpoint(now)
            else:
                self._end(now)

    def wakeup(self, now: float) -> float:
        """When `tick` next has something to do, if nothing is heard before."""
        if self.phase is GossipPhase.EXCHANGING:
            closes = [self.sessions[peer].contacts.closes_at(now) for peer in self._waits_for(now)]
            return min([self._patient_until_s, *closes])
        if self.phase is GossipPhase.HOLDING:
            return self._checkpoint_due_s if self.gossip.exchanges > self._kept else math.inf
        return self._ends_at(now) if self.phase is GossipPhase.LINGERING else math.inf

    def _waits_for(self, now: float) -> list[int]:
        awaited = (self._awaited & self.gossip.waits_for) - self.trust.left_out(now)
        return [peer for peer in awaited if self.sessions[peer].contacts.is_up(now)]

    def _send(self, now: float) -> None:
        """Makes what was opened durable, then offers it."""
        for peer, message in list(self._unsent.items()):
            self.exchanges.keep(peer, self.gossip.numbers[peer], "sent", message)
            del self._unsent[peer]
            self._offer(peer, now)

    def _offer(self, peer: int, now: float) -> None:
        message = bytes(self.gossip.message(peer))
        self._offered[peer] = self.sessions[peer].offer(GOSSIP, message, now)

    def _mix(self, now: float) -> None:
        numbers = self.gossip.numbers
        sizes = {peer: len(self.gossip.message(peer)) for peer in self.gossip.complete}
        for peer in self.gossip.mix(self.descent.vector):
            self._offered.pop(peer, None)
            taken = self.gossip.clipped.get(peer, 1.0)
            say(log, "exchanged", peer=peer, number=numbers[peer], bytes=sizes[peer], taken=round(taken, 4))
            self._judge(peer, numbers[peer], taken, now)
        if self.exchanges.new_bytes > LOG_SHARE * 8 * self.descent.vector.size:
            self._checkpoint(now)

    def _judge(self, peer: int, number: int, taken: float, now: float) -> None:
        if taken < 1.0:  # a replay would not know the limit
            self.exchanges.forget(peer, number, "taken", until=number + 1)
        if self.trust.judge(peer, taken):
            far = (
                f"differ by {1 / taken:.0f} times what is taken at most" if taken else "are of another model"
            )
            self._leave_out(peer, f"its values {far}", now)

    # remember

    def _roll_back(self, why: str, now: float) -> bool:
        """Returns to the last checkpoint, the second time to the one before, and leaves out those that pulled
        far more than others; False if no neighbour can have spoiled the model or nothing better is left. What
        was mixed since is not mixed again: honest neighbours pulled against the spoiled model."""
        if self._rollbacks == ROLLBACKS or not (self._rollbacks or self.gossip.exchanges > self._kept):
            return False
        checkpoints = self._checkpoints
        kept = checkpoints.load_before() if self._rollbacks else checkpoints.load(was_kept=True)
        if kept is None:
            return False
        for peer, until in self.gossip.numbers.items():
            self.exchanges.forget(peer, kept.numbers.get(peer, 0), "taken", until=until)
        self.descent.restore(kept.vector, kept.velocity, kept.batches)
        suspects = self.gossip.suspects
        self._rollbacks += 1
        self._watch.clear()
        self._losses.clear()
        say(log, "rolled-back", level=logging.ERROR, why=why, batches=self.descent.batches, suspects=suspects)
        for peer in suspects:
            self._leave_out(peer, f"the model was rolled back: {why}", now)
        self._go_on(now)
        return True

    def _checkpoint(self, now: float) -> None:
        """Makes the model durable. A full disk costs the checkpoint, not the training."""
        if self._rollbacks and not self._watch.is_sure:
            return  # it may be spoiled still
        descent = self.descent
        try:
            if self.phase is GossipPhase.HOLDING:
                self._checkpoints.keep_model(descent.weights)
            numbers, memory = self.gossip.numbers, self.gossip.memory
            reached = Checkpoint(descent.vector, descent.velocity, descent.batches, numbers, memory)
            before = self._checkpoints.keep(reached)
            if not self.known.was_checkpointed:
                self.known.was_checkpointed = True
                self.journal.save(self.known)
            self.exchanges.checkpointed(before)
            self._kept, self._rollbacks = self.gossip.exchanges, 0
            self.gossip.checkpointed()
        except OSError as error:
            say(log, "checkpoint-failed", level=logging.ERROR, why=str(error))
        self._checkpoint_due_s = now + self.config.checkpoint_s

    def _ends_at(self, now: float) -> float:
        """A neighbour that is out of contact may have been cut off in an exchange that this end has mixed, so
        it is waited for; one without more contacts is not."""
        patience_s = self.config.gossip.patience_s
        ends = [self._quiet_since_s + patience_s]
        for peer in self.sessions.keys() - self.trust.left_out(now):
            session = self.sessions[peer]
            heard = max(session.presence.active_at, self._quiet_since_s)
            ends.append(session.contacts.after(heard, patience_s))
        return max(at for at in ends if at < math.inf)

    def _end(self, now: float) -> None:
        self._checkpoints.keep_model(self.descent.weights)
        self._checkpoint(now)
        self.phase = GossipPhase.OVER
        say(log, "done", epochs=round(self.descent.epochs), exchanges=self.gossip.exchanges)

    def close(self, now: float) -> None:
        """Makes the model durable, as the program is told to stop."""
        if self.phase is not GossipPhase.FAILED:
            self._checkpoint(now)

    # say how it is

    def status(self) -> dict[str, Any]:
        return {
            "phase": self.phase.name.lower(), "epochs": self.descent.epochs, "cpu_s": self.cpu_s,
            "loss": self._losses[-1] if self._losses else None, "exchanges": self.gossip.exchanges,
            "exchanges_refused": self.trust.refused, "exchanges_clipped": self.trust.clipped,
        }  # fmt: skip
