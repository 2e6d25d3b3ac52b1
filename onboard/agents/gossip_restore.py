"""A node's model comes back from its disk: after a restart, and where a neighbour has spoiled it."""

from __future__ import annotations

from collections.abc import Mapping

from onboard.agents.exchange_log import ExchangeLog
from onboard.agents.gossip_checkpoint import Checkpoints
from onboard.learn.gossip.algorithms import Begin, GossipAlgorithm
from onboard.learn.gossip.descent import Descent
from onboard.wire.session import Session


class Restorer:
    """Of one node: its `descent` has the model; checkpoints and exchanges are on its disk."""

    def __init__(
        self, descent: Descent, begin: Begin, checkpoints: Checkpoints, exchanges: ExchangeLog
    ) -> None:
        self._descent, self._begin = descent, begin
        self._checkpoints, self._log = checkpoints, exchanges

    def restore(self, was_checkpointed: bool, sessions: Mapping[int, Session]) -> GossipAlgorithm:
        """The checkpoint's model is in force; returns the algorithm as it was then."""
        kept = self._checkpoints.load(was_checkpointed)
        if kept is not None:
            self._descent.restore(kept.vector, kept.velocity, kept.batches)
            return self._begin(kept.numbers, kept.memory)
        if self._checkpoints.was_lost and any(map(self._log.first, sessions)):
            # Else the log has all that was mixed into the first model.
            for peer, session in sessions.items():
                session.forget(*session.done)  # what was taken has gone with the model that it was mixed into
                self._log.forget(peer)
        return self._begin({}, {})

    def roll_back(self, numbers: Mapping[int, int], *, before: bool) -> bool:
        """The checkpoint's model is in force, or that of the one before it. Nothing of what was mixed since,
        until these numbers, is mixed again: honest neighbours have pulled against what spoiled the model, and
        without that would pull too far. Returns whether there is such a checkpoint."""
        kept = self._checkpoints.load_before() if before else self._checkpoints.load(was_kept=True)
        if kept is None:
            return False
        for peer, until in numbers.items():
            self._log.forget_taken(peer, range(kept.numbers.get(peer, 0), until))
        self._descent.restore(kept.vector, kept.velocity, kept.batches)
        return True
