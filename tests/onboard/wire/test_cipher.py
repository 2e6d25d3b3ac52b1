"""An encrypted frame is CCM's as the standard has it, and opens only whole, once, under its own key, at an
end that encrypts."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher as Blocks
from cryptography.hazmat.primitives.ciphers import algorithms, modes
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from onboard.wire.config import Identity, Medium, Security, SessionState
from onboard.wire.events import Delivered, EncryptionMismatch
from onboard.wire.framing import frame as framing
from onboard.wire.framing.frame import HEADER_BYTES, OVERHEAD_BYTES, BadFrame, Frame, Type
from onboard.wire.security.cipher import MAX_PAYLOAD_BYTES, Cipher
from onboard.wire.security.seal import HELLO, SECRET, TRAFFIC, Opener, Sealer, directional_key
from onboard.wire.session import Session
from tests.onboard.wire.examples import FRAME, KEY, VECTORS, encrypted
from tests.onboard.wire.pair import FULL, HALF, SIDES, UPDATE, Pair, data, finish
from tests.onboard.wire.test_frame import frames, keys
from tests.onboard.wire.test_seal import takes_each_once

GROUND, BOARD = 0, 3
SECRET_FRAME = replace(FRAME, encrypted=True)


def ccm(key: bytes, nonce: bytes, header: bytes, payload: bytes, tag_bytes: int = 8) -> bytes:
    """CCM as SP 800-38C, section 6.1 and appendix A, says it, from AES alone."""
    aes = Blocks(algorithms.AES(key), modes.ECB()).encryptor()  # CCM's one building block

    def xor(left: bytes, right: bytes) -> bytes:
        return bytes(one ^ other for one, other in zip(left, right, strict=False))

    def blocks(text: bytes) -> list[bytes]:
        return [text[at : at + 16].ljust(16, b"\0") for at in range(0, len(text), 16)]

    width = 15 - len(nonce)
    first = bytes([64 + 8 * ((tag_bytes - 2) // 2) + width - 1]) + nonce + len(payload).to_bytes(width, "big")
    mac = bytes(16)
    for block in [first, *blocks(len(header).to_bytes(2, "big") + header), *blocks(payload)]:
        mac = aes.update(xor(mac, block))
    stream = [
        aes.update(bytes([width - 1]) + nonce + counter.to_bytes(width, "big"))
        for counter in range(len(blocks(payload)) + 1)
    ]
    return xor(payload, b"".join(stream[1:])) + xor(mac[:tag_bytes], stream[0])


def test_the_reference_is_rfc_3610s_packet_vector_1() -> None:
    key = bytes.fromhex("c0c1c2c3c4c5c6c7c8c9cacbcccdcecf")
    nonce = bytes.fromhex("00000003020100a0a1a2a3a4a5")
    golden = "588c979a61c663d2f066d0c2c0f989806d5f6b61dac38417e8d12cfdf926e0"
    assert ccm(key, nonce, bytes(range(8)), bytes(range(8, 31))).hex() == golden


@given(frames, keys)
def test_a_frame_is_ccm_under_what_names_it(frame: Frame, key: bytes) -> None:
    raw = encrypted(frame, key)
    header = raw[:HEADER_BYTES]
    assert framing.unproven(raw) == replace(frame, encrypted=True, payload=raw[HEADER_BYTES:-8])
    assert raw[HEADER_BYTES:] == ccm(key, header[2:10] + bytes(5), header, frame.payload)
    assert len(raw) == len(frame.payload) + OVERHEAD_BYTES
    assert Cipher(key).decode(raw) == replace(frame, encrypted=True)


def test_golden_bytes() -> None:
    golden = (VECTORS / "frame-encrypted.bin").read_bytes()
    assert encrypted(FRAME, KEY) == golden
    assert Cipher(KEY).decode(golden) == SECRET_FRAME


@given(frames, keys, st.data())
def test_any_flipped_bit_is_noticed(frame: Frame, key: bytes, data: st.DataObject) -> None:
    raw = bytearray(encrypted(frame, key))
    bit = data.draw(st.integers(0, 8 * len(raw) - 1))
    raw[bit // 8] ^= 1 << bit % 8
    with pytest.raises(BadFrame):
        Cipher(key).decode(bytes(raw))


@given(frames, keys, keys, st.data())
def test_what_is_cut_off_or_of_another_key_is_noticed(
    frame: Frame, key: bytes, other: bytes, data: st.DataObject
) -> None:
    raw = encrypted(frame, key)
    with pytest.raises(BadFrame):
        Cipher(key).decode(raw[: data.draw(st.integers(0, len(raw) - 1))])
    if other != key:
        with pytest.raises(BadFrame, match="another key"):
            Cipher(other).decode(raw)


@given(st.binary(max_size=100) | st.sampled_from([bytes([0x22]) + bytes(70_000)]))
def test_any_bytes_are_refused(raw: bytes) -> None:
    with pytest.raises(BadFrame):
        Cipher(KEY).decode(raw)


def test_ccm_s_length_has_two_bytes() -> None:
    longest = replace(FRAME, payload=bytes(MAX_PAYLOAD_BYTES))
    assert Cipher(KEY).decode(encrypted(longest, KEY)).payload == longest.payload
    with pytest.raises(ValueError, match="65536 B"):
        encrypted(replace(FRAME, payload=bytes(MAX_PAYLOAD_BYTES + 1)), KEY)
    with pytest.raises(ValueError, match="70000"):
        encrypted(replace(FRAME, fragment=70_000), KEY)


def pair(epoch: int = 1) -> tuple[Sealer, Opener]:
    return (
        Sealer(KEY, source=BOARD, destination=GROUND, epoch=epoch, purpose=SECRET),
        Opener(KEY, source=BOARD, destination=GROUND, purpose=SECRET),
    )


def test_encryption_has_subkeys_of_its_own() -> None:
    # blake2s(b"\x03\x00\x01", key=bytes(range(32)), person=b"sdml-enc")
    golden = "5b174d73aa32728da7857fe3dc275c40d8837d0551a6872eddf5e885f7bbdba9"
    assert directional_key(KEY, 3, 0, 1, purpose=SECRET).hex() == golden
    subkeys = {directional_key(KEY, 3, 0, 1, purpose=purpose) for purpose in (TRAFFIC, HELLO, SECRET)}
    assert len(subkeys) == 3
    sealer, _ = pair()
    raw = sealer.seal(Type.DATA, b"payload")
    assert Cipher(directional_key(KEY, BOARD, GROUND, 0, purpose=SECRET)).decode(raw).payload == b"payload"


@given(st.permutations(range(1, 60)), st.data())
def test_reordered_frames_are_each_taken_once(order: list[int], data: st.DataObject) -> None:
    takes_each_once(*pair(), order, data, encrypted=True)


@given(st.binary(max_size=300), st.data())
def test_no_flipped_bit_gets_past_the_opener(payload: bytes, data: st.DataObject) -> None:
    sealer, opener = pair()
    good = sealer.seal(Type.DATA, payload, object_id=5, fragment=9)
    raw = bytearray(good)
    bit = data.draw(st.integers(0, 8 * len(raw) - 1))
    raw[bit // 8] ^= 1 << bit % 8
    assert opener.open(bytes(raw)) is None
    refused = opener.counts.total()
    assert (refused, opener.counts["plain_dropped"], opener.floor) == (1, 0, (0, 0))
    assert opener.open(good) is not None


def test_an_end_takes_its_own_form_alone_and_counts_the_other() -> None:
    secret_sealer, secret = pair()
    plain_sealer = Sealer(KEY, source=BOARD, destination=GROUND, epoch=1)
    plain = Opener(KEY, source=BOARD, destination=GROUND)
    for opener, foreign in ((secret, plain_sealer.seal(Type.DATA)), (plain, secret_sealer.seal(Type.DATA))):
        assert opener.open(foreign) is None
    assert (secret.counts, plain.counts) == ({"plain_dropped": 1}, {"encrypted_dropped": 1})
    forged = Sealer(bytes(32), source=BOARD, destination=GROUND, epoch=1)
    assert secret.open(forged.seal(Type.DATA)) is None  # plain, but not the peer's
    assert (secret.counts["plain_dropped"], secret.counts["bad_tags"], secret.floor) == (1, 1, (0, 0))
    unknown = Sealer({1: KEY}, source=BOARD, destination=GROUND, epoch=1, purpose=SECRET)
    assert secret.open(unknown.seal(Type.DATA)) is None
    assert secret.counts["unknown_keys"] == 1


@pytest.mark.parametrize("link", [FULL, HALF], ids=["full", "half"])
def test_a_transfer_costs_as_many_bytes_as_a_plain_one_and_shows_none_of_them(link) -> None:  # type: ignore[no-untyped-def]
    payload = b"nobody else is to read this. " * 400
    air: dict[bool, list[bytes]] = {True: [], False: []}
    for is_encrypted, heard in air.items():

        def keep(raw: bytes, now: float, heard: list[bytes] = heard) -> list[bytes]:
            heard.append(raw)
            return [raw]

        made = Pair(link, frame_loss=0.1, encrypted=SIDES if is_encrypted else (), mangle=keep)
        made.board.offer(UPDATE, payload, 0.0)
        finish(made, made.board)
        assert [kept for _, kept in made.ground.disk.objects.values()] == [payload]
    assert [len(raw) for raw in air[True]] == [len(raw) for raw in air[False]]
    assert any(b"nobody else" in raw for raw in air[False])
    assert not any(b"nobody" in raw for raw in air[True])


@pytest.mark.parametrize("secret", SIDES)
def test_ends_that_differ_take_nothing_and_each_says_so_once(secret) -> None:  # type: ignore[no-untyped-def]
    made = Pair(FULL, encrypted=[secret])
    made.ground.offer(UPDATE, data(2_000), 0.0)
    made.board.offer(UPDATE, data(3_000), 0.0)
    made.run(120.0)
    for end in (made.ground, made.board):
        assert end.seen(EncryptionMismatch) == [EncryptionMismatch(encrypted=end.side != secret)]
        assert end.session is not None
        snapshot = end.session.snapshot(120.0)
        assert snapshot.frames_received == snapshot.bad_tags == snapshot.malformed == 0
        refused = snapshot.plain_dropped if end.side == secret else snapshot.encrypted_dropped
        assert refused > 8
        assert snapshot.plain_dropped + snapshot.encrypted_dropped == refused
        end.kill()
        end.encrypted = True  # as the operator sets them
        end.boot(120.0)
    made.run(180.0, lambda: len(made.board.seen(Delivered)) + len(made.ground.seen(Delivered)) == 2)
    assert made.ground.seen(Delivered)
    assert made.board.seen(Delivered)


def test_bit_errors_are_no_other_form() -> None:
    for encrypted_ends in ((), SIDES):
        made = Pair(FULL, bit_error_rate=2e-4, encrypted=encrypted_ends)
        made.board.offer(UPDATE, data(30_000), 0.0)
        made.run(120.0)
        assert made.ground.session is not None
        assert made.ground.session.snapshot(120.0).bad_tags > 20
        assert not made.ground.seen(EncryptionMismatch)


def test_broadcasts_are_plain_so_nobody_listens_to_them_on_an_encrypted_link() -> None:
    with pytest.raises(ValueError, match="broadcasts are never encrypted"):
        Session(
            Identity(7, 0, primary=False),
            Medium(FULL),
            Security(KEY, encrypted=True, group_key=bytes(32)),
            SessionState(epoch=1),
        )
