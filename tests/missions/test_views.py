"""`onboard link` and `groundstation links` show real programs at work, and say so when nobody is there."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from click.testing import CliRunner

import groundstation.cli
import onboard.cli
from onboard.mission.objects import UPDATE
from tests.missions.bench import MissionBench, bench, run


def test_both_ends_show_the_same_transfer_while_it_lasts(tmp_path: Path) -> None:
    with bench(tmp_path, bits_up=2.0) as it:  # 19 s on their way: the views of a busy computer take a few
        board, ground = ("link", str(it.node_toml)), ("links", str(it.mission))
        for module, arguments in (("onboard", board), ("groundstation", ground)):
            assert "no program runs on it" in run(module, *arguments, "--once", code=1).stderr
        it.start_cable()
        it.start_ground()
        it.start_board()
        it.until(lambda: it.link().get("fragments_received", 0) > 20)

        it.listen()
        seen = json.loads(it.run("onboard", *board, "--once", "--json").stdout)
        assert (seen["node"], seen["phase"], seen["round"]) == ("pi", "offering", 1)
        assert (seen["link"]["port"]["url"], seen["link"]["port"]["open"]) == (str(it.board_port), True)
        (update,) = seen["link"]["objects"]
        assert (update["kind"], update["incoming"]) == (UPDATE, False)
        assert 0 < update["held"] < update["fragments"]
        assert seen["link"]["eta_out_s"] == update["eta_s"] > 0 == seen["link"]["eta_in_s"]

        it.listen()
        seen = json.loads(it.run("groundstation", *ground, "--once", "--json").stdout)
        assert seen["waiting"] == ["pi"]
        (link,) = seen["links"]
        assert (link["node"], link["port"]["open"]) == ("pi", True)
        assert [one["digest"] for one in link["objects"] if one["incoming"]] == [update["digest"]]
        assert update["digest"][:8] in it.run("groundstation", *ground, "--once").stdout

        watch_until_it_has_ended(it)


def watch_until_it_has_ended(it: MissionBench) -> None:
    """A live picture on a terminal: drawn again in place, says that the agent has ended, ends by Ctrl-C."""
    master, slave = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "onboard", "link", str(it.node_toml)],
        stdout=slave,
        stderr=slave,
        # Who starts the suite in a shell's background has it ignore Ctrl-C, and all its children.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    ) as viewer:
        os.close(slave)
        try:
            text, killed, deadline = "", False, time.monotonic() + 30
            while "the program has ended" not in text:
                assert time.monotonic() < deadline, text
                it.listen()
                if select.select([master], [], [], 0.1)[0]:
                    text += os.read(master, 4096).decode()
                if not killed and len(re.findall(r"\x1b\[H\S*pi", text)) == 2:
                    it.kill("board")
                    killed = True
            viewer.send_signal(signal.SIGINT)
            assert viewer.wait(10) == 0
        finally:  # or a failure would wait for it for ever
            viewer.kill()
    os.close(master)
    assert text.count("\x1b[2J") == 1  # cleared once, and then drawn in place


def test_a_file_that_is_wrong_is_told_as_for_every_command(tmp_path: Path) -> None:
    for group, command in ((onboard.cli.main, "link"), (groundstation.cli.main, "links")):
        result = CliRunner().invoke(group, [command, str(tmp_path / "none")])
        assert result.exit_code == 2
        assert re.fullmatch(r"[^\n]*none[^\n]*: [^\n]+\n", result.stderr)
