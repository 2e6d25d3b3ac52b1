"""Ports and spools: the only part of the flight side that touches a device, a socket or the spool's files."""

from onboard.link.ports.port import BadUrl, Port, PortFacts, PortLost
from onboard.link.ports.schemes import facts_of, open_port, opener
from onboard.link.spool import Spool

__all__ = [
    "BadUrl", "Port", "PortFacts", "PortLost", "Spool", "facts_of", "open_port", "opener",
]  # fmt: skip
