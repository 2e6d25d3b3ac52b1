"""What the store has committed is there after a restart, a kill and a full disk."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundstation.store.store import RoundRow, Store, StoreError, StoreForeign
from onboard.storage.journal import LinkState
from onboard.wire.events import QuotaUsage

MISSION = bytes(range(8))
GRAPH = bytes(range(8, 16))
METRICS = {"samples": 600, "loss": 0.25, "train_s": 12.0, "cpu_s": 11.0, "energy_j": 70.0}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "mission.sqlite"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    """A store with a mission and two nodes."""
    store = Store(path)
    store.begin(MISSION, "m", 3, GRAPH)
    for node in (1, 2):
        store.enter_node(node, f"board-{node}")
    yield store
    store.close()


def states(store: Store, number: int) -> dict[int, str]:
    return {answer["node"]: answer["state"] for answer in store.answers(number)}


def test_a_mission_is_entered_once(store: Store, path: Path) -> None:
    assert store.begin(b"x" * 8, "other", 9, b"y" * 8)[:2] == (MISSION, GRAPH)
    mission = store.mission()
    assert mission is not None
    assert (mission["name"], mission["seed"], mission["finished_at"]) == ("m", 3, None)
    store.finish("target", 99.5)
    store.close()
    mission = Store(path).mission()
    assert mission is not None
    assert (mission["finished_at"], mission["why"]) == (99.5, "target")


def test_a_new_file_is_empty(tmp_path: Path) -> None:
    store = Store(tmp_path / "new.sqlite")
    assert store.mission() is None
    assert (store.rounds(), store.nodes(), store.answers(1), store.model(0)) == ([], [], [], None)


def test_a_round_from_its_opening_to_its_model(store: Store, path: Path) -> None:
    store.open_round(1, b"the model that was sent", [2, 1], 100.0, 1000.0)
    assert store.rounds() == [
        RoundRow(1, 100.0, 1000.0, b"the model that was sent", None, None, None, None, 900.0)
    ]
    assert states(store, 1) == {1: "asked", 2: "asked"}
    store.mark(1, 2, "delivered", 110.0)
    store.take_update(1, 1, b"update", METRICS, 120.0)
    assert states(store, 1) == {1: "answered", 2: "delivered"}
    assert (store.payload(1, 1), store.payload(1, 2), store.payload(2, 1)) == (b"update", None, None)
    store.close_round(1, b"weights", 0.9, 0.3, 0.12, 130.0)
    store.close()

    again = Store(path)
    assert again.rounds() == [
        RoundRow(1, 100.0, 1000.0, b"the model that was sent", 130.0, 0.9, 0.3, 0.12, 900.0)
    ]  # fmt: skip
    assert (again.model(1), again.model(2)) == (b"weights", None)
    first, second = again.answers(1)
    assert {key: first[key] for key in METRICS} == METRICS
    assert (first["changed_at"], first["bytes"], second["bytes"]) == (120.0, 6, None)
    heard = again.nodes()[0]
    assert heard["heard_at"] == 120.0


def test_a_round_that_nobody_answered_is_asked_again(store: Store) -> None:
    store.open_round(1, b"model", [1, 2], 100.0, 200.0)
    store.mark(1, 1, "failed", 150.0)
    store.mark(1, 2, "delivered", 150.0)
    store.time_left(1, 0.0, 200.0)
    store.ask_again(1, 200.0, 300.0)
    assert states(store, 1) == {1: "asked", 2: "delivered"}  # only the one that failed is asked anew
    assert [answer["asking"] for answer in store.answers(1)] == [1, 0]
    assert [(row.opened_at, row.deadline_at, row.left_s) for row in store.rounds()] == [(100.0, 300.0, 100.0)]
    assert (store.ask_once_more(1, 2, 210.0), store.ask_once_more(1, 2, 220.0)) == (1, 2)
    assert states(store, 1) == {1: "asked", 2: "asked"}


def test_a_merged_update_stays_with_the_round_that_took_it(store: Store) -> None:
    store.open_round(1, b"model", [1], 100.0, 200.0)
    store.take_update(1, 2, b"of a round before", METRICS, 110.0, merged=True)
    assert states(store, 1) == {1: "asked", 2: "merged"}
    assert store.payload(1, 2) == b"of a round before"
    store.ask_again(1, 200.0, 300.0)
    assert states(store, 1) == {1: "asked", 2: "merged"}
    store.take_update(1, 2, b"of a round before", METRICS, 210.0, merged=True)  # told twice
    assert states(store, 1) == {1: "asked", 2: "merged"}


def test_the_epoch_rises_with_every_entry(store: Store, path: Path) -> None:
    store.report(1, 50.0, {"state": 1}, 0.0)
    epochs = [store.enter_node(1, "board-1").epoch]
    for _ in range(3):
        again = Store(path)
        entered = again.enter_node(1, "renamed")
        assert entered == LinkState(epoch=epochs[-1] + 1)
        epochs.append(entered.epoch)
        again.close()
    assert store.nodes()[0]["name"] == "renamed"
    assert store.nodes()[1]["epoch"] == 1


def test_how_the_last_object_is_cut_stays(store: Store, path: Path) -> None:
    store.set_fragment_size(1, b"first", 100)
    store.set_fragment_size(1, b"second", 80)
    store.close()
    again = Store(path)
    assert [again.fragment_bytes(1, digest) for digest in (b"first", b"second")] == [None, 80]
    assert again.fragment_bytes(2, b"second") is None


def test_what_was_spent_of_an_allowance_stays(store: Store, path: Path) -> None:
    spent = QuotaUsage(1200, ((3600.5, 800), (0.0, 400)))
    store.spend(2, spent)
    store.close()
    again = Store(path)
    assert (again.enter_node(1, "a").spent, again.enter_node(2, "b").spent) == (QuotaUsage(), spent)


def test_health_and_counters_are_replaced_not_added(store: Store) -> None:
    store.report(1, 50.0, {"state": 1}, 0.0)
    store.open_round(1, b"model", [1], 50.0, 90.0)
    store.take_update(1, 1, b"update", METRICS, 60.0)  # which says nothing of its health
    assert (store.nodes()[0]["heard_at"], store.nodes()[0]["health"]) == (60.0, '{"state": 1}')
    store.count(1, {"bytes_sent": 10, "airtime_s": 1.5})
    store.count(1, {"bytes_sent": 30})
    assert store.counters(1) == {"bytes_sent": 30, "airtime_s": 1.5}
    assert store.counters(2) == {}


def test_a_transaction_that_fails_leaves_nothing(store: Store) -> None:
    with pytest.raises(StoreError, match=r"mission\.sqlite: FOREIGN KEY"):
        store.open_round(1, b"model", [1, 99], 0.0, 1.0)  # node 99 was never entered
    assert (store.rounds(), store.answers(1)) == ([], [])
    with pytest.raises(RuntimeError, match="in the middle"), store.transaction():
        raise RuntimeError("in the middle")
    store.open_round(1, b"model", [1], 0.0, 1.0)
    with pytest.raises(StoreError, match="UNIQUE"):
        store.open_round(1, b"another", [2], 5.0, 6.0)
    assert states(store, 1) == {1: "asked"}
    assert store.rounds()[0].model == b"model"


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["open", "answer", "close", "fail", "restart"]), st.integers(1, 2)),
        max_size=25,
    )
)
def test_whatever_the_order_a_restart_reads_back_what_was_committed(steps: list[tuple[str, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mission.sqlite"
        store = Store(path)
        for node in (1, 2):
            store.enter_node(node, str(node))
        number, expected, models = 0, dict[tuple[int, int], str](), dict[int, bytes]()
        for at, (step, node) in enumerate(steps):
            if step == "open" and number in {0, *models}:  # a round opens when the one before it is over
                number += 1
                store.open_round(number, b"m", [1, 2], at, at + 1)
                expected |= {(number, 1): "asked", (number, 2): "asked"}
            elif step == "restart":
                store.close()
                store = Store(path)
            elif number and step == "answer":
                store.take_update(number, node, bytes([at]), METRICS, at)
                expected[number, node] = "answered"
            elif number and step == "fail":
                store.mark(number, node, "failed", at)
                expected[number, node] = "failed"
            elif number and step == "close":
                store.close_round(number, bytes([at]), 0.5, 1.0, 0.1, at)
                models[number] = bytes([at])
            assert {(n, k): v for n in range(1, number + 1) for k, v in states(store, n).items()} == expected
            kept = [n for n in models if n == 1 or n >= number - 2]  # the best, and what may be asked for
            assert {n: store.model(n) for n in kept} == {n: models[n] for n in kept}
            assert [row.number for row in store.rounds()] == list(range(1, number + 1))
        store.close()


def test_a_reader_sees_a_running_writers_commits_and_changes_nothing(store: Store, path: Path) -> None:
    reader = Store(path, read_only=True)
    store.open_round(1, b"model", [1, 2], 0.0, 1.0)
    assert states(reader, 1) == {1: "asked", 2: "asked"}
    with store.transaction():
        store.db.execute("UPDATE answer SET state = 'failed'")
        assert states(reader, 1) == {1: "asked", 2: "asked"}  # not committed yet, and not waited for
    assert states(reader, 1) == {1: "failed", 2: "failed"}
    with pytest.raises(StoreError, match="readonly"):
        reader.mark(1, 1, "answered", 2.0)
    reader.close()


def test_what_is_no_database_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mission.sqlite"
    path.write_bytes(b"not a database, and longer than a header of one hundred bytes" * 9)
    before = path.read_bytes()
    with pytest.raises(StoreForeign, match=rf"^{path}: is no mission's database \(file is not a database\)$"):
        Store(path)
    assert path.read_bytes() == before
    with pytest.raises(StoreError, match=r"absent\.sqlite: unable to open"):
        Store(tmp_path / "absent.sqlite", read_only=True).mission()


COMMIT_FOREVER = """
import sys
from importlib import resources
from pathlib import Path
from groundstation.store.store import Store
store = Store(Path(sys.argv[1]))
store.enter_node(1, "a")
metrics = {"samples": 1, "loss": 0, "train_s": 0, "cpu_s": 0, "energy_j": 0}
number = len(store.rounds())
while True:
    number += 1
    store.open_round(number, b"m" * 3000, [1], 0.0, 1.0)
    store.take_update(number, 1, b"u" * 3000, metrics, 0.0)
    print(number, flush=True)  # DONE may leave now
"""


def test_kill_9_loses_nothing_that_was_committed(path: Path) -> None:
    acknowledged = set[int]()
    for lines in (5, 20, 40):
        with subprocess.Popen(
            [sys.executable, "-c", COMMIT_FOREVER, str(path)], stdout=subprocess.PIPE, text=True
        ) as child:
            assert child.stdout is not None
            told = [child.stdout.readline() for _ in range(lines)]
            child.kill()
            told += child.stdout.read().splitlines(keepends=True)
        acknowledged |= {int(line) for line in told if line.endswith("\n")}
        store = Store(path)
        assert max(acknowledged) <= len(store.rounds()) <= max(acknowledged) + 1
        assert all(states(store, number) == {1: "answered"} for number in acknowledged)
        kept = sorted(acknowledged)[-1:]  # of those before it a digest is enough
        assert all(store.payload(number, 1) == b"u" * 3000 for number in kept)
        store.close()
        assert sqlite3.connect(path).execute("PRAGMA integrity_check").fetchone() == ("ok",)


FILL = """
import resource, signal, sys
from importlib import resources
from pathlib import Path
from groundstation.store.store import Store, StoreError
store = Store(Path(sys.argv[1]))
store.enter_node(1, "a")
store.open_round(1, b"model", [1], 0.0, 1.0)
metrics = {"samples": 1, "loss": 0, "train_s": 0, "cpu_s": 0, "energy_j": 0}
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))  # EFBIG where ENOSPC would be
try:
    store.take_update(1, 1, bytes(1_000_000), metrics, 3.0)
except StoreError as error:
    print(error)
assert store.answers(1)[0]["state"] == "asked"
assert store.nodes()[0]["heard_at"] is None
store.mark(1, 1, "delivered", 2.0)  # what still fits is written
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
store.take_update(1, 1, bytes(1_000_000), metrics, 3.0)  # and the same again once there is room
"""


def test_a_full_disk_is_an_error_and_nothing_stored_is_lost(path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FILL, str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{path}: ")
    assert done.stdout.count("\n") == 1
    store = Store(path)
    assert states(store, 1) == {1: "answered"}
    assert store.payload(1, 1) == bytes(1_000_000)
    assert store.nodes()[0]["heard_at"] == 3.0
