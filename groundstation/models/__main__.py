"""Rebuilds the shipped graphs: `python -m groundstation.models`. None is written unchecked."""

from __future__ import annotations

from pathlib import Path

import click

from groundstation.models import lenet5, resnet20
from groundstation.models.export import BATCH_SIZES, ExportError, write
from onboard.learn.graph import SHIPPED

BUILDERS = {"lenet5": lenet5, "lenet5-rgb": lenet5, "resnet20": resnet20, "resnet20-64": resnet20}
"""The module that builds the graphs of each row of `NETWORKS`."""
BATCHES = {"resnet20": (1, 2, 3), "resnet20-64": (1, 2)}
"""Batch sizes whose gradients are checked, where not BATCH_SIZES: with more images, a unit is at its kink."""


@click.command(
    help="Rebuild the graphs of every model. Example: python -m groundstation.models --out onboard/graphs"
)
@click.option(
    "--out", type=click.Path(path_type=Path), default=SHIPPED, help="Folder to write into.", show_default=True
)
def main(out: Path) -> None:
    """Builds, checks and writes each model; exits with 1 where a gradient is not autograd's."""
    for name, network in BUILDERS.items():
        train, infer = network.train_graph(name), network.infer_graph(name)
        try:
            error = write(out, name, train, infer, network.reference, BATCHES.get(name, BATCH_SIZES))
        except ExportError as failure:
            raise click.ClickException(str(failure)) from None
        click.echo(f"{name}: largest gradient error {error:.1e} of the largest gradient")


if __name__ == "__main__":
    main()
