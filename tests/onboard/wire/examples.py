"""One example of everything that has a byte format, with the golden file that holds its bytes."""

from __future__ import annotations

from pathlib import Path

from hypothesis import strategies as st

from onboard.inference.ring import AnswerRecord
from onboard.learn.training import BoardTraining
from onboard.mission.commands import Command, CommandResult
from onboard.mission.files import PART_BYTES, FilePart, FileRequest, WantedFile
from onboard.mission.health import AnswerHealth, Failure, Health, State
from onboard.mission.objects import MODEL, Task, Update
from onboard.wire.framing import frame as framing
from onboard.wire.framing.frame import ENC, OVER, POLL, Frame, Type
from onboard.wire.messages import Cancel, Done, Offer, Reason, Report
from onboard.wire.security.cipher import Cipher
from onboard.wire.security.security_context import Hello

VECTORS = Path(__file__).parent.parent.parent / "vectors"
KEY = bytes(range(32))
SMALLEST_PAYLOAD = 51 - 22  # LoRa SF12 at its lowest data rate
u8, u16, u32 = st.integers(0, 0xFF), st.integers(0, 0xFFFF), st.integers(0, 0xFFFFFFFF)

DIGEST = bytes.fromhex("00112233445566778899aabbccddeeff")
FRAME = Frame(
    Type.DATA,
    source=3,
    destination=0,
    epoch=7,
    seq=258,
    object_id=5,
    fragment=9,
    payload=b"space\0edge",
    priority=4,
    poll=True,
)
OFFER = Offer(DIGEST, size=65_536, fragment_bytes=200, kind=MODEL, deadline_s=480)
REPORT_BITMAP = Report(epoch=7, seq=300, prefix=DIGEST[:4], held=0b1010_0101_1101_1111_1111)
REPORT_RUNS = Report(epoch=7, seq=300, prefix=DIGEST[:4], held=(1 << 300) - 1 & ~(3 << 20))
REPORT_SUMS = Report(
    epoch=7, seq=300, prefix=DIGEST[:4], held=(1 << 300) - 1 & ~(3 << 20 | 63 << 290), equations=((1, 4),)
)
REPORT_UNKNOWN = Report(epoch=7, seq=300, unknown=True)
DONE = Done(DIGEST)
CANCEL = Cancel(DIGEST, Reason.TOO_LARGE)
HELLO = Hello(challenge=b"question", answer=b"answer..", salt=b"new salt")
HEALTH = Health(
    State.TRAINING, round=12, uptime_s=86_400, airtime_s=512.25, energy_j=1_500.5, cpu_s=777.0,
    temperature_c=-12.5, progress=0.25, asking=1,
)  # fmt: skip
FAILED = Health(
    State.FAILED, round=12, uptime_s=86_400, airtime_s=512.25, energy_j=1_500.5, cpu_s=777.0,
    failure=Failure.MEMORY, why="needs 90 MB of 66",
)  # fmt: skip
ANSWERING = Health(
    State.IDLE, round=12, uptime_s=86_400, airtime_s=512.25, energy_j=1_500.5, cpu_s=777.0,
    answers=AnswerHealth(812, 14, confidence=0.75, drift=0.125, classes=((8, 153 / 255), (3, 51 / 255))),
)  # fmt: skip
TASK = Task(
    mission=b"mission1", round=3, model="lenet5", graph=b"\x01\x02\x03\x04\x05\x06\x07\x08", seed=42,
    weights="packed",
    training=BoardTraining(
        method="spacedml", epochs=5, pretrain_epochs=2, batch_size=32, learning_rate=0.001, bits_up=0.125,
        max_bases=4, shift_pixels=2, distortion=0.5, prune_ratio=0.75, prune_epochs=4, basis_epochs=1,
        coordinate_epochs=1,
    ),
    deadline_s=480.0, asking=2,
    classes=bytes.fromhex("e0f1a2b3c4d5e6f7"), names=("land", "sea"),
)  # fmt: skip
UPDATE = Update(
    mission=b"mission1", round=3, node=2, samples=600, loss=0.25, cpu_s=12.5, energy_j=30.0, train_s=25.0
)
WEIGHTS = b"weights"
ANSWER = AnswerRecord(
    n=7, image="a.png", key="0123456789abcdef", at=1.8e9, model="00ff", label=1, name="sea", share=0.75,
    confidence=0.75, score=0.75, chosen=True,
)  # fmt: skip
COMMAND = Command(id=b"command1", name="ping")
RESULT = CommandResult(
    command=b"command1", outcome="done", values={"time": 1_800_000_000.5, "uptime_s": 86_400}
)
PART = FilePart(DIGEST, PART_BYTES + 7, PART_BYTES, b"the end", base=b"an older version")
REQUEST = FileRequest(
    asking=7,
    files=(
        WantedFile(digest=DIGEST, size=3 * PART_BYTES, held=b"\x05"),
        WantedFile(digest=b"of the weights..", bases=(b"an older version",)),
    ),
)


def encoded(frame: Frame, key: bytes) -> bytes:
    """What `framing.encode` makes of a frame that `framing.decode` gave."""
    sender = framing.tagging(framing.keyed(key), frame.source, frame.destination, frame.epoch)
    flags, rest = _flags(frame), (frame.seq, frame.object_id, frame.fragment, frame.payload)
    return framing.encode(sender, frame.type, flags, *rest)


def encrypted(frame: Frame, key: bytes) -> bytes:
    """What `Cipher.encode` makes of it."""
    numbers = frame.source, frame.destination, frame.epoch, frame.seq, frame.object_id, frame.fragment
    return Cipher(key).encode(framing.header(frame.type, _flags(frame) | ENC, *numbers), frame.payload)


def _flags(frame: Frame) -> int:
    return frame.priority << 5 | frame.poll * POLL | frame.over * OVER | frame.encrypted * ENC | frame.key_id
