"""`python -m benchmarks.ends.cfdp_end SPEC` is one end of a link that CFDP class 2 uses: cfdp-py over UDP.

SPEC is JSON: side ("board" sends), namespace, addresses, path (of the board's file; the ground's copy stands
beside it), rate_bps, packet_bytes (of the longest PDU), timer_s and limit (of the timers for acknowledgements
and NAKs). Events are JSON lines as those of `port_end`. Needs cfdp-py and the standard library alone: its
interpreter may have nothing else.

cfdp-py hands out PDUs as fast as they are taken, so they are sent at the link's rate, at most two packets or
5 ms ahead of it, as a session's are. While PDUs wait for that its timers are not looked at: the
retransmissions of a long NAK would trip them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import select
import signal
import socket
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

from cfdppy import (
    CfdpUserBase,
    IndicationConfig,
    LocalEntityConfig,
    PutRequest,
    RemoteEntityConfig,
    RemoteEntityConfigTable,
)
from cfdppy.handler.dest import DestHandler
from cfdppy.handler.source import SourceHandler
from cfdppy.mib import CheckTimerProvider, DefaultFaultHandlerBase
from spacepackets.cfdp import ChecksumType, ConditionCode, TransmissionMode
from spacepackets.cfdp.pdu.finished import DeliveryCode
from spacepackets.cfdp.pdu.helper import PduFactory
from spacepackets.countdown import Countdown
from spacepackets.seqcount import SeqCountProvider
from spacepackets.util import ByteFieldU8

from benchmarks.ends.tell import tell
from benchmarks.harness import netns

PORT = 5111
COPY = Path("copy")
IPV4_UDP_BYTES = 28
AHEAD_S = 0.005  # as onboard.wire.medium.medium_access: no timer of an operating system is finer
TICK_S = 0.02  # how often cfdp-py is asked whether a timer has run out
ENTITIES = {"ground": ByteFieldU8(0), "board": ByteFieldU8(1)}


def main() -> None:
    """Runs until SIGTERM."""
    spec = json.loads(sys.argv[1])
    netns.enter(spec["namespace"])
    side, peer = spec["side"], "board" if spec["side"] == "ground" else "ground"
    source = Path(spec["path"])
    os.chdir(source.parent)  # a metadata PDU carries the names of both files
    user = User(side)
    local = LocalEntityConfig(ENTITIES[side], IndicationConfig(), CfdpFaults())
    table = RemoteEntityConfigTable([_remote(spec, peer)])
    handler: SourceHandler | DestHandler
    if side == "board":
        handler = SourceHandler(local, user, table, CheckTimers(), SeqCountProvider(16))
    else:
        handler = DestHandler(local, user, table, CheckTimers())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as port:
        port.bind((spec["addresses"][side], PORT))
        port.connect((spec["addresses"][peer], PORT))
        port.setblocking(False)
        tell("PortUp")
        if side == "board":
            tell("Offered")
            handler.put_request(_request(source.name))
        try:
            Sender(port, handler, spec["rate_bps"], spec["packet_bytes"]).run()
        except Exception as error:  # cfdp-py's own: its race is over, and not the benchmark
            tell("Failed", why=repr(error))
            signal.pause()


def _remote(spec: dict[str, Any], peer: str) -> RemoteEntityConfig:
    return RemoteEntityConfig(
        entity_id=ENTITIES[peer],
        max_file_segment_len=None,  # what fits a packet
        max_packet_len=spec["packet_bytes"],
        closure_requested=False,
        crc_on_transmission=False,
        default_transmission_mode=TransmissionMode.ACKNOWLEDGED,
        crc_type=ChecksumType.CRC_32,
        positive_ack_timer_interval_seconds=spec["timer_s"],
        positive_ack_timer_expiration_limit=spec["limit"],
        nak_timer_interval_seconds=spec["timer_s"],
        nak_timer_expiration_limit=spec["limit"],
    )


def _request(name: str) -> PutRequest:
    return PutRequest(
        destination_id=ENTITIES["ground"], source_file=Path(name), dest_file=COPY,
        trans_mode=TransmissionMode.ACKNOWLEDGED, closure_requested=False,
    )  # fmt: skip


class Sender:
    """Moves PDUs between a handler and a socket, at the link's rate."""

    def __init__(
        self, port: socket.socket, handler: SourceHandler | DestHandler, rate_bps: float, packet_bytes: int
    ) -> None:
        self._port, self._handler, self._rate_bps = port, handler, rate_bps
        self._ahead_s = max(AHEAD_S, self._airtime_s(packet_bytes))
        self._end_s = 0.0  # when all that was sent has left
        self._waiting: deque[bytes] = deque()

    def run(self) -> None:
        """For good."""
        while True:
            while time.monotonic() >= self._end_s - self._ahead_s:
                if not self._waiting:
                    self._handler.state_machine()
                    self._take()
                if not self._waiting:
                    break
                self._send(self._waiting.popleft())
            opens_s = self._end_s - self._ahead_s - time.monotonic()
            if select.select([self._port], [], [], opens_s if opens_s > 0 else TICK_S)[0]:
                self._hear()

    def _hear(self) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionRefusedError):  # a peer that is not up yet
            while True:
                datagram = self._port.recv(1 << 16)
                try:
                    self._handler.state_machine(PduFactory.from_raw(datagram))
                except Exception as error:  # cfdp-py refuses PDUs out of place by a dozen unrelated types
                    print(f"refused: {error!r}", file=sys.stderr)
                self._take()

    def _take(self) -> None:
        while (holder := self._handler.get_next_packet()) is not None:
            self._waiting.append(bytes(holder.pack()))

    def _send(self, pdu: bytes) -> None:
        with contextlib.suppress(ConnectionRefusedError):  # tells of an earlier one
            self._port.send(pdu)
        self._end_s = max(self._end_s, time.monotonic()) + self._airtime_s(len(pdu))

    def _airtime_s(self, pdu_bytes: int) -> float:
        return (pdu_bytes + IPV4_UDP_BYTES) * 8 / self._rate_bps


class User(CfdpUserBase):
    """Tells of what the benchmark wants to know, and of nothing else."""

    def __init__(self, side: str) -> None:
        super().__init__()
        self._side = side

    def transaction_finished_indication(self, params: Any) -> None:
        """The ground has the file, or the board knows that it has; or one of them has given up."""
        finished = params.finished_params
        if (finished.condition_code, finished.delivery_code) != (
            ConditionCode.NO_ERROR,
            DeliveryCode.DATA_COMPLETE,
        ):
            tell("Failed", why=finished.condition_code.name)
        elif self._side == "board":
            tell("Delivered")
        else:
            tell("Arrived")
            tell("Whole", sha256=hashlib.sha256(COPY.read_bytes()).hexdigest())

    def transaction_indication(self, transaction_indication_params: Any) -> None: ...
    def eof_sent_indication(self, transaction_id: Any) -> None: ...
    def eof_recv_indication(self, transaction_id: Any) -> None: ...
    def metadata_recv_indication(self, params: Any) -> None: ...
    def file_segment_recv_indication(self, params: Any) -> None: ...
    def report_indication(self, transaction_id: Any, status_report: Any) -> None: ...
    def suspended_indication(self, transaction_id: Any, cond_code: Any) -> None: ...
    def resumed_indication(self, transaction_id: Any, progress: int) -> None: ...
    def fault_indication(self, transaction_id: Any, cond_code: Any, progress: int) -> None: ...
    def abandoned_indication(self, transaction_id: Any, cond_code: Any, progress: int) -> None: ...


class CfdpFaults(DefaultFaultHandlerBase):
    """A transaction that is given up is told of."""

    def notice_of_cancellation_cb(self, transaction_id: Any, cond: ConditionCode, progress: int) -> None:
        tell("Failed", why=cond.name)

    def notice_of_suspension_cb(self, transaction_id: Any, cond: ConditionCode, progress: int) -> None:
        tell("Failed", why=cond.name)

    def abandoned_cb(self, transaction_id: Any, cond: ConditionCode, progress: int) -> None:
        tell("Failed", why=cond.name)

    def ignore_cb(self, transaction_id: Any, cond: ConditionCode, progress: int) -> None: ...


class CheckTimers(CheckTimerProvider):
    """Only class 1 asks for one."""

    def provide_check_timer(self, local_entity_id: Any, remote_entity_id: Any, entity_type: Any) -> Countdown:
        raise AssertionError("class 2 has no check timer")


if __name__ == "__main__":
    main()
