"""Rebuilds the shipped networks, `python -m groundstation.models`, and writes only what autograd confirms."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType

import click
import msgspec

from groundstation.models import lenet5, resnet20
from groundstation.models.checks import DisagreementError, Original
from groundstation.models.export import Made, made, state, write
from groundstation.models.from_torch import Authored
from groundstation.models.losses import Loss
from onboard.learn.graph import initial
from onboard.learn.networks import INFER, SHIPPED, TRAIN, NetworkFile, PartName

EUROSAT, LAND_COVER = 10, 3  # classes


@click.command(
    help="Rebuild every network that ships, or those NAMEd. Example: python -m groundstation.models unet-64"
)
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option(
    "--out", type=click.Path(path_type=Path), default=SHIPPED, help="Folder to write into.", show_default=True
)
def main(names: tuple[str, ...], out: Path) -> None:
    """Builds, checks and writes each network; exits with 1 where a gradient is not autograd's."""
    if odd := [name for name in names if name not in BUILDERS]:
        raise click.UsageError(f"no network {odd[0]!r} ships: {', '.join(BUILDERS)}")
    for name in names or BUILDERS:
        network, original = BUILDERS[name](name)
        try:
            worst = write(out / name, network, original)
        except DisagreementError as wrong:
            raise click.ClickException(str(wrong)) from None
        click.echo(f"{name}: largest error {worst.graph:.1e} of a tensor's norm")


def written(module: ModuleType, name: str) -> tuple[Made, Original]:
    """Returns a network whose graphs are written by hand, and its torch reference."""
    plan = module.plan(name)
    about = NetworkFile(
        name=name, task="classify", input=plan.input_shape, outputs=plan.classes,
        forward_macs=plan.forward_macs, files={},
    )  # fmt: skip
    parts: dict[PartName, bytes] = {
        TRAIN: module.train_graph(name).SerializeToString(deterministic=True),
        INFER: module.infer_graph(name).SerializeToString(deterministic=True),
    }
    return Made(about, parts), Original(module.reference, initial(plan.shapes, 0))


def authored(name: str) -> Authored:
    """Returns a shipped network's module."""
    from groundstation.models.networks import autoencoder, mobilenet, unet, vit

    image = (3, 64, 64)
    if name == "mobilenetv3-small-64":
        return Authored(mobilenet.mobilenetv3_small(EUROSAT), image, EUROSAT)
    if name == "vit-tiny-64":
        return Authored(vit.VisionTransformer(64, 8, EUROSAT), image, EUROSAT)
    if name == "unet-64":
        return Authored(unet.UNet(3, LAND_COVER), image, LAND_COVER, Loss(kind="segment", ignore=255))
    return Authored(autoencoder.autoencoder(3, 64), image, 3, Loss(kind="reconstruct"))


def traced(name: str) -> tuple[Made, Original]:
    """Returns a network that is traced, without the versions of what traced it, and its module."""
    import torch

    torch.manual_seed(0)
    network = authored(name)
    found = made(network, name)
    about = msgspec.structs.replace(found.about, made_with={})
    return Made(about, found.parts), Original(network.reference, state(network), network.loss)


BUILDERS: dict[str, Callable[[str], tuple[Made, Original]]] = {
    "lenet5": partial(written, lenet5),
    "lenet5-rgb": partial(written, lenet5),
    "resnet20": partial(written, resnet20),
    "resnet20-64": partial(written, resnet20),
}
"""What makes each network that ships of its name."""


if __name__ == "__main__":
    main()
