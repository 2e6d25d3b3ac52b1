"""A node's life among neighbours: train, exchange, mix. A dead neighbour costs its edge, and nothing else.

As `onboard.agent`, it is told events and the time, runs one training step when the carrier says so, and never
waits itself. Every few batches it opens an exchange on every edge that is in contact and has none open. It
trains on when these are complete or its patience is over; each is waited for once and in contact alone, and
one that completes later is mixed at the next. After its last epoch it opens none, answers its neighbours',
and is over when it has not heard them for as long as its patience, in contact with them.

A node that trains nothing, such as a ground station, holds a model and answers its neighbours, for ever.
"""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Collection, Mapping
from enum import IntEnum
from typing import Any

import msgspec
import numpy as np

from onboard.boot_counter import Counted
from onboard.codec.mask import share_of
from onboard.codec.sparse import BadExchange
from onboard.codec.values import Form
from onboard.config import GossipConfig
from onboard.exchanges import ExchangeLog, replay
from onboard.gossip_checkpoint import Checkpoints
from onboard.journal import Journal
from onboard.learn.descent import Descent
from onboard.learn.gossip import Gossip, Message
from onboard.log import say
from onboard.wire.events import Arrived, Cancelled, Corrupt, Delivered, Event, PeerHeard, Rekeyed, Spent
from onboard.wire.messages import GOSSIP, Reason
from onboard.wire.seal import NO_SALT, next_epoch
from onboard.wire.session import Session

log = logging.getLogger(__name__)

MODEL, EXCHANGES = "model.npz", "exchanges"
FULL_EVERY_S = 60.0  # a board may stay without memory for long
LOG_SHARE = 4  # a log that grew by so many checkpoints is worth one: it bounds the disk and a replay


class Phase(IntEnum):
    """What a node is doing."""

    TRAINING = 0
    EXCHANGING = 1  # waits for the exchanges that it has just opened
    LINGERING = 2  # all epochs are done: answers its neighbours
    OVER = 3
    FAILED = 4  # a step could not be run: it opens no exchange any more
    HOLDING = 5  # trains nothing: answers its neighbours


class Tie(msgspec.Struct, kw_only=True):
    """What is kept of the link with one neighbour: its keys' salt, the floor of their frames under it, and
    what was spent of this end's allowances."""

    salt: bytes = NO_SALT
    floor: tuple[int, int] = (0, 0)
    spent: Spent = Spent()


class Known(Counted, kw_only=True):
    """What the agent keeps in its journal."""

    ties: dict[int, Tie] = msgspec.field(default_factory=dict)
    was_checkpointed: bool = False


class GossipAgent:
    """One node. `sessions` talk, by neighbour; `journal` and `exchanges` remember; `descent` trains, at
    `flops_a_step` FLOP each; `classes` as `Gossip` takes it."""

    def __init__(
        self,
        config: GossipConfig,
        sessions: dict[int, Session],
        journal: Journal[Known],
        known: Known,
        exchanges: ExchangeLog,
        descent: Descent,
        flops_a_step: float,
        classes: bytes = b"",
    ) -> None:
        self.config, self.descent, self._classes = config, descent, classes
        self.phase, self.cpu_s = Phase.TRAINING, 0.0
        self.refused = 0  # values of neighbours that could not be used
        self.gossip = self._begun({})
        self.sessions, self._journal, self.known = sessions, journal, known
        self._log, self._flops_a_step = exchanges, flops_a_step
        self._checkpoints = Checkpoints(config.state, config.id, descent.vector.size)
        self._unsent: dict[int, Message] = {}  # opened, and not on the disk yet
        self._offered: dict[int, bytes] = {}  # digests of what was sent in the open exchanges
        self._awaited: frozenset[int] = frozenset()
        self._quiet_since_s = self._patient_until_s = self._checkpoint_due_s = 0.0
        self._full_due_s = -math.inf
        self._losses: list[float] = []  # of this epoch
        self._kept = -1  # exchanges that the model of the last checkpoint has

    # restart

    def resume(self, now: float) -> None:
        """Goes on where the last run was cut: with its checkpoint, and all that was exchanged since.

        Raises OSError.
        """
        numbers, mixed = self._restore(), 0
        self.gossip = self._begun(numbers)
        for peer in self.sessions:
            try:
                mixed += replay(self._log, self.gossip, peer, self.descent.vector)
            except BadExchange as error:  # the configuration is another one
                self._refuse(peer, f"from the log: {error}")
                self._log.forget(peer)
            if self.gossip.message(peer):
                self._offer(peer, now)
        if self.descent.batches or mixed:
            say(log, "resumed", phase="training", batches=self.descent.batches, mixed=mixed)
        self._checkpoint_due_s = now + self.config.checkpoint_s
        self._go_on(now)

    def _begun(self, numbers: Mapping[int, int]) -> Gossip:
        own = self.config.gossip
        return Gossip(
            self.config.id,
            {each.id: each.weight for each in self.config.neighbours},
            size=self.descent.vector.size,
            seed=own.seed,
            share=share_of(own.sparsity),
            form=Form[own.values.upper()],
            numbers=numbers,
            classes=self._classes,
        )

    def _restore(self) -> dict[int, int]:
        """The checkpoint's model is in force; returns its numbers, by neighbour."""
        kept = self._checkpoints.load(self.known.was_checkpointed)
        if kept is not None:
            self.descent.restore(kept.vector, kept.velocity, kept.batches)
            return kept.numbers
        if not self._checkpoints.was_lost or not any(map(self._log.first, self.sessions)):
            return {}  # the log has all that was mixed into the first model
        for peer, session in self.sessions.items():
            session.forget(*session.done)  # what was taken has gone with the model that it was mixed into
            self._log.forget(peer)
        return {}

    def count_start(self) -> None:
        """A link begins again, under an epoch of its own; it is durable on return. Raises OSError."""
        self.known.epoch = next_epoch(self.known.epoch)
        self._save()

    # hear

    def hear(self, peer: int, event: Event, now: float) -> None:
        """Takes one event of the link with a neighbour.

        Raises OSError (disk full): the same event is to be told again before anything else is asked for, as
        nothing may be mixed that is not durable.
        """
        if isinstance(event, Arrived):
            self._take(peer, event, now)
        elif isinstance(event, Delivered) and event.digest == self._offered.get(peer):
            self.gossip.delivered(peer)
        elif isinstance(event, Cancelled) and event.digest == self._offered.get(peer):
            self._log.forget(peer, self.gossip.numbers[peer])
            self.gossip.refused(peer)
            del self._offered[peer]
            say(log, "exchange-cancelled", level=logging.WARNING, peer=peer, why=event.reason)
        elif isinstance(event, PeerHeard) and peer in self._offered:
            self._offer(peer, now)  # it may have lost what it took: it then learns the number from this
        elif isinstance(event, Rekeyed):
            self.sessions[peer].rekey(event.salt)
            say(log, "rekeyed", peer=peer, again=event.again)
        elif isinstance(event, Spent):
            self._save(peer, spent=event)
        elif isinstance(event, Corrupt):
            say(log, "corrupt", level=logging.WARNING, peer=peer, object=event.digest.hex())

    def _take(self, peer: int, arrived: Arrived, now: float) -> None:
        """A neighbour's values: checked, then durable, then acknowledged."""
        try:
            if arrived.kind != GOSSIP:
                raise BadExchange(f"kind {arrived.kind} is not for a node that gossips")
            self.gossip.take(peer, arrived.payload)
        except BadExchange as error:
            self._refuse(peer, str(error))
            self.sessions[peer].refuse(arrived.digest, Reason.REFUSED, now)
            return
        if not self.gossip.message(peer):  # the neighbour was further on: what was opened here is over
            self._unsent.pop(peer, None)
            self._offered.pop(peer, None)
        self._log.keep(peer, "taken", arrived.payload)
        self._save()
        self.sessions[peer].accept(arrived.digest, now)

    def _refuse(self, peer: int, why: str) -> None:
        self.refused += 1
        say(log, "exchange-refused", level=logging.WARNING, peer=peer, why=why)

    # train

    @property
    def trains(self) -> bool:
        """Whether a training step may be run."""
        return self.phase is Phase.TRAINING

    def advance(self) -> float:
        """Runs one training step; returns its cost in FLOP. Raises what the graph raises."""
        self._losses.append(self.descent.step())
        return self._flops_a_step

    def charge(self, cpu_s: float, now: float) -> None:
        """Books what the step cost, then exchanges or goes on. Raises OSError: see `tick`."""
        self.cpu_s += cpu_s
        descent, every = self.descent, self.config.gossip.every
        if descent.batches % descent.batches_an_epoch == 0:
            if now >= self._checkpoint_due_s:
                self._checkpoint(now)
            loss = sum(self._losses) / len(self._losses)
            self._losses.clear()
            sent = sum(session.snapshot(now).bytes_sent for session in self.sessions.values())
            say(
                log, "epoch", epoch=round(descent.epochs), loss=loss, exchanges=self.gossip.exchanges,
                bytes_sent=sent,
            )  # fmt: skip
        if descent.batches % every == 0:
            self._exchange(now)
        elif self._finished:
            self._go_on(now)

    def fail(self, error: Exception, now: float) -> None:
        """A step could not be run (no memory, a loss that is no number): the neighbours go on without."""
        self.phase = Phase.FAILED
        say(log, "training-failed", level=logging.ERROR, why=str(error) or type(error).__name__)

    def relieve(self, now: float) -> None:
        """No memory is left on the board for the agent itself: it trains no more, and answers others."""
        why = "no memory is left on the board for the agent itself"
        if now >= self._full_due_s:
            self._full_due_s = now + FULL_EVERY_S
            say(log, "memory-full", level=logging.ERROR, why=why)
        if self.trains:
            self.fail(MemoryError(why), now)

    @property
    def _finished(self) -> bool:
        """Whether all epochs are done."""
        epochs = self.config.gossip.epochs
        return 0 < epochs * self.descent.batches_an_epoch <= self.descent.batches

    def _go_on(self, now: float) -> None:
        self._quiet_since_s = now
        if not self.config.gossip.trains:
            self.phase = Phase.HOLDING
        else:
            self.phase = Phase.LINGERING if self._finished else Phase.TRAINING

    # exchange, mix

    def _exchange(self, now: float) -> None:
        self._mix(now)
        self._patient_until_s = now + self.config.gossip.patience_s
        self.phase = Phase.EXCHANGING
        self._awaited = self._open(self.sessions, now) & {
            each.id for each in self.config.neighbours if each.wait
        }
        self.tick(now)

    def _open(self, peers: Collection[int], now: float) -> frozenset[int]:
        """Opens exchanges with those that are in contact, as what is said between contacts is stale by the
        next; returns with which."""
        near = [peer for peer in peers if self.sessions[peer].in_contact(now)]
        try:
            opened = self.gossip.open(self.descent.vector, near)
        except (ValueError, MemoryError) as error:  # a model that is not finite, or too large for its form
            self.fail(error, now)
            return frozenset()
        self._unsent |= opened
        return frozenset(opened)

    def tick(self, now: float) -> None:
        """What time and complete exchanges bring about. Raises OSError (disk full): call it again later."""
        self._send(now)
        if self.phase is Phase.EXCHANGING:
            if now >= self._patient_until_s or not self._waits_for(now):
                self._mix(now)
                self._go_on(now)
        elif self.phase in (Phase.LINGERING, Phase.HOLDING):
            self._mix(now)
            self._open(self.gossip.asked, now)
            self._send(now)
            if now < self.wakeup(now):
                return
            if self.phase is Phase.HOLDING:
                self._checkpoint(now)
            else:
                self._end(now)

    def wakeup(self, now: float) -> float:
        """When `tick` next has something to do, if nothing is heard before."""
        if self.phase is Phase.EXCHANGING:
            closes = [self.sessions[peer].closes_at(now) for peer in self._waits_for(now)]
            return min([self._patient_until_s, *closes])
        if self.phase is Phase.HOLDING:
            return self._checkpoint_due_s if self.gossip.exchanges > self._kept else math.inf
        return self._ends_at(now) if self.phase is Phase.LINGERING else math.inf

    def _waits_for(self, now: float) -> list[int]:
        """Neighbours in contact with whom the exchange that was just opened is not complete."""
        awaited = self._awaited & self.gossip.waits_for
        return [peer for peer in awaited if self.sessions[peer].in_contact(now)]

    def _send(self, now: float) -> None:
        """What was opened is durable, then offered."""
        for peer, message in list(self._unsent.items()):
            self._log.keep(peer, "sent", message)
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
            say(log, "exchanged", peer=peer, number=numbers[peer], bytes=sizes[peer])
        if self._log.new_bytes > LOG_SHARE * 8 * self.descent.vector.size:
            self._checkpoint(now)

    # remember

    def _checkpoint(self, now: float) -> None:
        """The model is durable; that of a node that trains nothing can be used. A full disk costs the
        checkpoint, not the training."""
        descent = self.descent
        try:
            if self.phase is Phase.HOLDING:
                self._keep_model()
            reached = self._checkpoints.keep(
                descent.vector, descent.velocity, descent.batches, self.gossip.numbers
            )
            if not self.known.was_checkpointed:
                self.known.was_checkpointed = True
                self._save()
            self._log.checkpointed(reached)
            self._kept = self.gossip.exchanges
        except OSError as error:
            say(log, "checkpoint-failed", level=logging.ERROR, why=str(error))
        self._checkpoint_due_s = now + self.config.checkpoint_s

    def _save(self, of: int | None = None, **changed: Any) -> None:
        """All ties are durable as they are, and what has `changed` in the one with neighbour `of`."""
        for peer, session in self.sessions.items():
            fields = {"salt": session.salt, "floor": session.floor} | (changed if peer == of else {})
            tie = self.known.ties.get(peer, Tie())
            self.known.ties[peer] = msgspec.structs.replace(tie, **fields)
        self._journal.save(self.known)

    def _ends_at(self, now: float) -> float:
        """When no neighbour has been heard in `patience_s` of contact with it. One that is out of contact may
        have been cut off in an exchange that this end has mixed; for one without more contacts none waits."""
        patience_s = self.config.gossip.patience_s
        ends = [self._quiet_since_s + patience_s]
        for session in self.sessions.values():
            heard = max(session.presence.active_at, self._quiet_since_s)
            ends.append(session.after(heard, patience_s))
        return max(at for at in ends if at < math.inf)

    def _keep_model(self) -> None:
        packed = io.BytesIO()
        np.savez(packed, **self.descent.weights)  # type: ignore[arg-type]
        self._journal.keep(MODEL, packed.getvalue())

    def _end(self, now: float) -> None:
        self._keep_model()
        self._checkpoint(now)
        self.phase = Phase.OVER
        say(log, "done", epochs=round(self.descent.epochs), exchanges=self.gossip.exchanges)

    # say how it is

    def doing(self) -> dict[str, Any]:
        """What the agent is at, for a live view: phase, how far the training is, and the exchanges."""
        return {
            "phase": self.phase.name.lower(),
            "epochs": self.descent.epochs,
            "loss": self._losses[-1] if self._losses else None,
            "cpu_s": self.cpu_s,
            "exchanges": self.gossip.exchanges,
            "exchanges_refused": self.refused,
        }
