"""Rebuilds the shipped networks, `python -m groundstation.models`, and writes only what autograd confirms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click
import msgspec

from groundstation.models.checks import DisagreementError, Original
from groundstation.models.export import Made, made, state, write
from groundstation.models.from_torch import Authored
from groundstation.models.losses import Loss
from onboard.learn.networks import SHIPPED

DIGITS, EUROSAT, LAND_COVER = 10, 10, 3  # classes


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


def authored(name: str) -> Authored:
    """Returns a shipped network's module."""
    from groundstation.models.networks import autoencoder, lenet5, mobilenet, resnet20, unet, vit

    image = (3, 64, 64)
    if name in ("lenet5", "lenet5-rgb"):
        channels = 1 if name == "lenet5" else 3
        return Authored(lenet5.LeNet5(channels, DIGITS), (channels, 28, 28), DIGITS)
    if name in ("resnet20", "resnet20-64"):
        return Authored(resnet20.ResNet20(EUROSAT), (3, 32, 32) if name == "resnet20" else image, EUROSAT)
    if name == "mobilenetv3-small-64":
        return Authored(mobilenet.mobilenetv3_small(EUROSAT), image, EUROSAT)
    if name == "vit-tiny-64":
        return Authored(vit.VisionTransformer(64, 8, EUROSAT), image, EUROSAT, recompute=0.12)
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


BUILDERS: dict[str, Callable[[str], tuple[Made, Original]]] = dict.fromkeys(
    (
        "lenet5", "lenet5-rgb", "resnet20", "resnet20-64", "mobilenetv3-small-64", "unet-64", "vit-tiny-64",
        "autoencoder-64",
    ),
    traced,
)  # fmt: skip
"""What makes each network that ships of its name."""


if __name__ == "__main__":
    main()
