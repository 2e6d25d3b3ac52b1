"""A node's model comes back from its disk: after a restart, and where a neighbour has spoiled it."""

from __future__ import annotations

from collections.abc import Mapping

from onboard.agents.exchange_log import ExchangeLog
from onboard.agents.gossip_checkpoint import Checkpoints
from onboard.codec.mask import share_of
from onboard.codec.values import Form
from onboard.config import GossipConfig
from onboard.learn.gossip.descent import Descent
from onboard.learn.gossip.exchange import Gossip
from onboard.wire.session import Session


class Restorer:
    """Of one node: its `descent` has the model; checkpoints and exchanges are on its disk. `classes` as
    `Gossip` takes it."""

    def __init__(
        self,
        config: GossipConfig,
        descent: Descent,
        checkpoints: Checkpoints,
        exchanges: ExchangeLog,
        classes: bytes,
    ) -> None:
        self._config, self._descent, self._classes = config, descent, classes
        self._checkpoints, self._log = checkpoints, exchanges

    def begun(self, numbers: Mapping[int, int]) -> Gossip:
        """A gossip at these numbers of exchanges, by neighbour."""
        own = self._config.gossip
        return Gossip(
            self._config.id,
            {each.id: each.weight for each in self._config.neighbours},
            size=self._descent.vector.size,
            seed=own.seed,
            share=share_of(own.sparsity),
            form=Form[own.values.upper()],
            numbers=numbers,
            classes=self._classes,
        )

    def restore(self, was_checkpointed: bool, sessions: Mapping[int, Session]) -> dict[int, int]:
        """The checkpoint's model is in force; returns its numbers, by neighbour."""
        kept = self._checkpoints.load(was_checkpointed)
        if kept is not None:
            self._descent.restore(kept.vector, kept.velocity, kept.batches)
            return kept.numbers
        if not self._checkpoints.was_lost or not any(map(self._log.first, sessions)):
            return {}  # the log has all that was mixed into the first model
        for peer, session in sessions.items():
            session.forget(*session.done)  # what was taken has gone with the model that it was mixed into
            self._log.forget(peer)
        return {}

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
