"""The two halves of a Flower app: boards that train LeNet-5, and a ground that averages until a target.

Flower's interpreter loads it from an app's folder (`claims.peers.fleets` makes one); the app's config
says where the data lies and what to do. The ground appends what happens to a file of JSON lines, with the
time (`at_s`, the computer's monotonic clock).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from benchmarks.ends import flower_learning
from benchmarks.ends.flower_learning import TorchLeNet

board = ClientApp()
ground = ServerApp()


@board.train()
def train(message: Message, context: Context) -> Message:
    """A round of a board, on the images that its node's config names."""
    torch.set_num_threads(1)  # as onnxruntime has on our boards; more only spin on a batch of ten
    config, told = context.run_config, message.content["config"]
    model = TorchLeNet()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    images = np.load(context.node_config["images"])
    loss = flower_learning.train(
        model, images["x"], images["y"], config["epochs"], told["rate"], told["server-round"]
    )
    metrics = MetricRecord({"num-examples": len(images["y"]), "loss": loss})
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
    return Message(content=content, reply_to=message)


@ground.main()
def main(grid: Grid, context: Context) -> None:
    """Rounds of all boards until the target, or as many as there are to be."""
    config = context.run_config
    first = {name: torch.from_numpy(value) for name, value in np.load(config["weights"]).items()}
    AveragingUntil(config).start(
        grid, ArrayRecord(first), config["rounds"], config["round-limit-s"], ConfigRecord()
    )


class AveragingUntil(FedAvg):
    """FedAvg that asks nobody once the averaged model is good enough."""

    def __init__(self, config: dict[str, Any]) -> None:
        nodes = config["boards"]
        super().__init__(fraction_evaluate=0.0, min_train_nodes=nodes, min_available_nodes=nodes)
        self._config, self._done = config, False
        self._test = np.load(config["test"])
        self._model = TorchLeNet()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The round's messages; none after the target."""
        if self._done:
            return []
        config["rate"] = self._config["rate"] * self._config["decay"] ** (server_round - 1)
        messages = list(super().configure_train(server_round, arrays, config, grid))
        self._tell("Asked", round=server_round, boards=len(messages))
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The average of what came, which is judged on the test images at once."""
        if self._done:
            return None, None
        answers = list(replies)
        failed = [str(each.error.reason) for each in answers if each.has_error()]
        arrays, metrics = super().aggregate_train(server_round, answers)
        accuracy = 0.0
        if arrays is not None:
            self._model.load_state_dict(arrays.to_torch_state_dict())
            accuracy = flower_learning.accuracy(self._model, self._test["x"], self._test["y"])
        self._done = accuracy >= self._config["target"]
        results = len(answers) - len(failed)
        self._tell("Closed", round=server_round, results=results, failed=failed, accuracy=accuracy)
        return arrays, metrics

    def _tell(self, event: str, **more: Any) -> None:
        with Path(self._config["events"]).open("a", encoding="utf-8") as file:
            print(json.dumps({"event": event, "at_s": time.monotonic(), **more}), file=file)
