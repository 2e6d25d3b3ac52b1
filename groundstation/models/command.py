"""The command `groundstation export`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onboard.console.errors import fail, refused
from onboard.console.extras import require
from onboard.learn.networks import NetworkFile
from onboard.learn.objectives import METRICS, Kind

if TYPE_CHECKING:
    from groundstation.models.checks import Distance
    from groundstation.models.export import Made
    from groundstation.models.from_torch import Authored


class ImageShape(click.ParamType[tuple[int, int, int]]):
    """CxHxW: channels, height and width."""

    name = "CxHxW"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, int, int]:
        sides = str(value).lower().split("x")
        if len(sides) != 3 or not all(side.isdecimal() and 0 < int(side) <= 65_535 for side in sides):
            self.fail(f"{value!r} is not CxHxW, as 3x64x64", param, ctx)
        channels, height, width = map(int, sides)
        return channels, height, width


class NumberList(click.ParamType[tuple[float, ...]]):
    """Numbers with commas between them."""

    name = "A,B,..."

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[float, ...]:
        try:
            return tuple(float(number) for number in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is no list of numbers, as 0.5,0.5,0.5", param, ctx)


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What the options of `groundstation export` say, of one task and in agreement.

    `image`: channels, height and width. `count`: outputs of the network. `names`: of the classes, or none.
    None stands for what was left out.
    """

    task: Kind
    image: tuple[int, int, int]
    count: int
    name: str
    names: tuple[str, ...]
    weights: str | None
    patterns: tuple[str, ...]
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    label_smoothing: float
    class_weights: tuple[float, ...] | None
    ignore: int | None
    recompute: float
    seed: int

    @classmethod
    def of(
        cls, out: Path, *, name: str | None, classes: int | None, class_names: str | None,
        outputs: int | None, **given: Any,
    ) -> Wishes:  # fmt: skip
        """Raises click.UsageError where options contradict each other."""
        names = tuple(part.strip() for part in class_names.split(",")) if class_names else ()
        count = _outputs(given["task"], given["image"], classes or len(names) or None, outputs)
        called = name or re.sub(r"[^a-z0-9._-]", "-", out.resolve().name.lower()).lstrip("._-")
        wishes = cls(count=count, names=names, name=called, **given)
        wishes._check()
        return wishes

    def _check(self) -> None:
        channels, of_classes = self.image[0], self.task in ("classify", "segment")
        if self.names and len(self.names) != self.count:
            raise click.UsageError(f"--class-names has {len(self.names)} names, needs {self.count}")
        if self.names and not of_classes:
            raise click.UsageError(f"--class-names are not for {self.task}")
        for option, numbers, needed in (
            ("--mean", self.mean, channels), ("--std", self.std, channels),
            ("--class-weights", self.class_weights, self.count),
        ):  # fmt: skip
            if numbers and len(numbers) != needed:
                raise click.UsageError(f"{option} has {len(numbers)} numbers, needs {needed}")
        if self.std and 0.0 in self.std:
            raise click.UsageError("--std has a 0")
        if (self.class_weights or self.label_smoothing) and not of_classes:
            raise click.UsageError(f"--class-weights and --label-smoothing are not for {self.task}")
        if self.ignore is not None and self.task != "segment":
            raise click.UsageError(f"--ignore is not for {self.task}")
        if self.patterns and self.weights == "seed":
            raise click.UsageError("--train freezes the module's own weights: not with --weights seed")
        if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", self.name):
            raise click.UsageError(
                f"--name {self.name!r} is not made of a-z, 0-9, '.', '_' and '-', at most 64"
            )


@click.command()
@click.argument("module", metavar="MODULE:FACTORY")
@click.argument("out", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--input", "image", metavar="CxHxW", type=ImageShape(), required=True,
              help="Images that it takes: channels, height, width.")  # fmt: skip
@click.option("--task", type=click.Choice(list(METRICS)), default="classify", show_default=True,
              help="What it learns: the class of an image (classify), the class of each pixel (segment), "
                   "numbers (regress), or the image itself (reconstruct).")  # fmt: skip
@click.option("--classes", type=click.IntRange(2, 65_535), show_default="as many as --class-names",
              help="Number of classes, of classify and segment.")  # fmt: skip
@click.option("--class-names", metavar="A,B,...", show_default="the data's",
              help="Names of the classes, in the order of the outputs.")  # fmt: skip
@click.option("--outputs", type=click.IntRange(1, 65_535), show_default="none",
              help="Number of numbers, of regress.")  # fmt: skip
@click.option("--name", show_default="OUT's", help="Name of the network.")
@click.option("--weights", type=click.Choice(["seed", "module"]), show_default="seed, with --train module",
              help="First weights: drawn from the mission's seed by board and ground alike, so that none "
                   "travel, or the module's own, as for a network that was trained before.")  # fmt: skip
@click.option("--train", "patterns", metavar="PATTERN", multiple=True, show_default="all",
              help="Train only parameters of this name, as 'head.*', and freeze the others, which do not "
                   "travel in rounds. Repeat for more.")  # fmt: skip
@click.option("--mean", metavar="A,B,...", type=NumberList(), show_default="none",
              help="What the graphs subtract from each channel of the images, which are 0..1.")  # fmt: skip
@click.option("--std", metavar="A,B,...", type=NumberList(), show_default="none",
              help="What they divide each channel by then.")  # fmt: skip
@click.option("--label-smoothing", type=click.FloatRange(0, 1, max_open=True), default=0.0, show_default=True,
              help="Share of a label that is spread over all classes.")  # fmt: skip
@click.option("--class-weights", metavar="A,B,...", type=NumberList(), show_default="all 1",
              help="How much each class counts in the loss.")  # fmt: skip
@click.option("--ignore", type=click.IntRange(0, 255), show_default="none",
              help="Label of pixels that count for nothing, of segment.")  # fmt: skip
@click.option("--recompute", metavar="SHARE", type=click.FloatRange(0, 1), default=0.03, show_default=True,
              help="Share of a training step's time that may be spent on computing tensors again, so that it "
                   "holds fewer at once.")  # fmt: skip
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, 2**32 - 1),
              help="Seed of what the factory draws from torch.")  # fmt: skip
def export(module: str, out: Path, **options: Any) -> None:
    """Makes a network for boards in the folder OUT: any torch module as two graphs, checked against autograd.

    MODULE:FACTORY names a function without arguments that returns the module, or the module itself;
    FILE.py:FACTORY does so in a file, and a call with plain arguments will do as well. It needs the extra
    author. OUT is replaced whole or not at all. Wherever a model is named, OUT may then stand.

    \b
    Examples:
      groundstation export examples/own_network.py:network --input 3x64x64 --classes 10 own/
      groundstation export 'timm:create_model("resnet18", num_classes=10)' \\
        --input 3x64x64 --classes 10 resnet18/
      groundstation export nets:pretrained --input 3x64x64 --classes 10 --train 'head.*' \\
        --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 tuned/
      groundstation export nets:unet --input 3x64x64 --task segment --classes 2 --ignore 255 unet/
    """
    require("torch", "onnx", "onnxruntime", "safetensors")
    wishes = Wishes.of(out, **options)
    _tell(f"importing torch and {module.partition(':')[0]}")
    from groundstation.models.checks import DisagreementError, Original
    from groundstation.models.export import made, state, write
    from groundstation.models.factory import FactoryError, network
    from groundstation.models.folder import check_place
    from groundstation.models.from_torch import Authored, freeze
    from groundstation.models.losses import Loss
    from groundstation.models.tracing import UnsupportedError

    loss = Loss(
        kind=wishes.task, label_smoothing=wishes.label_smoothing,
        class_weights=wishes.class_weights or (), ignore=wishes.ignore,
    )  # fmt: skip
    try:
        import torch

        check_place(out)
        torch.manual_seed(wishes.seed)
        # What is compiled runs as it is written: a trace of the rest would show nothing.
        as_written = torch._dynamo.config.patch(error_on_nested_fx_trace=False)
        with torch.compiler.set_stance("force_eager"), as_written:
            found = network(module)
            if wishes.patterns:
                freeze(found, wishes.patterns)
            authored = Authored(
                found, wishes.image, wishes.count, loss, wishes.mean or (), wishes.std or (), wishes.recompute
            )
            takes_weights = wishes.weights == "module" or bool(authored.frozen)
            done = made(authored, wishes.name, wishes.names, with_weights=takes_weights, tell=_tell)
            start = state(authored)
            worst = write(out, done, Original(authored.reference, start, loss), _tell)
    except (FactoryError, UnsupportedError) as error:
        fail(f"{wishes.name}: {error}" if isinstance(error, UnsupportedError) else str(error))
    except DisagreementError as error:
        fail(str(error), code=1)
    except OSError as error:
        refused(error, out)
    for line in _summary(out, authored, done, worst):
        click.echo(line)


def _outputs(task: Kind, image: Sequence[int], classes: int | None, outputs: int | None) -> int:
    """Returns how many outputs the network has. Raises UsageError where that is not said, or not right."""
    needed = {"classify": "--classes", "segment": "--classes", "regress": "--outputs"}.get(task)
    given = {"--classes": classes, "--outputs": outputs}
    for option, value in given.items():
        if value is not None and option != needed:
            raise click.UsageError(f"{option} is not for {task}")
    found = image[0] if needed is None else given[needed]
    if found is None:
        raise click.UsageError(f"{task} needs {needed}")
    return found


def _tell(what: str) -> None:
    click.echo(f"{what} ...", err=True)


def _summary(out: Path, authored: Authored, done: Made, worst: Distance) -> list[str]:
    from groundstation.models.export import counts

    about: NetworkFile = done.about
    learned, frozen = counts(authored)
    mib = about.image_bytes / 2**20
    sizes = ", ".join(f"{name} {len(raw):,} B" for name, raw in done.parts.items())
    first = "drawn from the mission's seed; the module's own stay behind (--weights module takes them)"
    if "params.safetensors" in done.parts:
        first = "the module's own"
    error = f"{worst.graph:.1e} of a tensor's norm (torch's own float32: {worst.torch:.1e})"
    return [
        f"{out}: {about.name}, {about.task}, {learned:,} parameters learn, {frozen:,} are frozen",
        f"first weights: {first}",
        f"an image: {about.forward_macs:,} multiply-adds forward, {mib:,.2f} MiB to train",
        f"files: {sizes}",
        f"largest error against float64: {error}",
    ]
