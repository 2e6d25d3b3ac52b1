"""A checkpoint is used by the training that wrote it, to the last bit as it was written, or not at all."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest

from onboard.agents.training_files import opened, seal, training_name

QUESTION = bytes(range(16))
NAME = training_name(QUESTION, 1)


def state_of(value: float) -> bytes:
    packed = io.BytesIO()
    np.savez(packed, latent=np.full(300, value, np.float32))
    return packed.getvalue()


def sealed(name: bytes, state: bytes) -> bytes:
    return state + seal(name, state)


def test_every_bit_every_cut_and_every_zeroed_run_is_noticed() -> None:
    content = sealed(NAME, state_of(1.0))
    assert opened(NAME, content) == state_of(1.0)
    for bit in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError, match="damaged"):
            opened(NAME, bytes(damaged))
    for end in range(len(content)):
        with pytest.raises(ValueError, match="damaged"):
            opened(NAME, content[:end])
    chance = random.Random(1)
    for _ in range(200):
        start, end = sorted(chance.sample(range(len(content) + 1), 2))
        damaged = bytearray(content)
        damaged[start:end] = bytes(end - start)
        if damaged != content:
            with pytest.raises(ValueError, match="damaged"):
                opened(NAME, bytes(damaged))


@pytest.mark.parametrize("other", [training_name(QUESTION, 2), training_name(bytes(16), 1)])
def test_another_round_s_and_another_board_s_are_refused_by_name(other: bytes) -> None:
    with pytest.raises(ValueError, match="of another round or node"):
        opened(NAME, sealed(other, state_of(1.0)))


def test_one_of_an_earlier_version_of_the_program_is_refused() -> None:
    with pytest.raises(ValueError, match="another version"):
        opened(NAME, state_of(1.0))


def test_numpy_reads_the_file_as_it_is() -> None:
    with np.load(io.BytesIO(sealed(NAME, state_of(2.0)))) as state:
        assert (state["latent"] == 2.0).all()
