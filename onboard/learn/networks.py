"""A network as board and ground hold it: a folder with two graphs, first weights if it brings any, and a
`model.toml` that describes them. It starts no onnxruntime, so that a command's help can name networks.

- `train.onnx` gives a loss and its gradients, `infer.onnx` answers (`learn.graph` runs both);
- `params.safetensors` holds first weights by name. Without it both ends draw them from the mission's seed;
- `model.toml` holds the digest of each of these, and its own digest names the network on a link: two nodes
  whose networks have the same digest compute the same. A file with a flipped bit is found before it is used.

`groundstation export` writes such a folder (docs/models.md)."""

from __future__ import annotations

import difflib
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import Meta

from onboard.console.toml import ConfigError, read
from onboard.learn.objectives import ClassLabel, Kind, Objective

if TYPE_CHECKING:
    from onboard.codec.layout import Floats

SHIPPED = Path(__file__).resolve().parent.parent / "models"
DESCRIPTION = "model.toml"
TRAIN: Literal["train.onnx"] = "train.onnx"
INFER: Literal["infer.onnx"] = "infer.onnx"
PARAMETERS: Literal["params.safetensors"] = "params.safetensors"
CHECKED_LOGITS = 48  # of all of them, evenly spread: the vector fits a command
DIGEST_BYTES = 8  # BLAKE2s-64 of model.toml, as a task names the network on the link

Side = Annotated[int, Meta(ge=1, le=65_535)]
Text = Annotated[str, Meta(min_length=1, max_length=64)]
NetworkName = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
PartName = Literal["train.onnx", "infer.onnx", "params.safetensors"]
PartDigest = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}$")]


class NetworkError(ValueError):
    """A network's folder cannot be used; one line says which and why."""


class NetworkFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole of model.toml."""

    version: Literal[1] = 1
    """Version of this form."""
    name: NetworkName
    """Name of the network, as tasks say it."""
    task: Kind
    """What it is trained for: the class of an image, the class of each pixel, numbers, or the image
    itself."""
    input: tuple[Side, Side, Side]
    """Channels, height and width of an image. Graphs take pixels as 0..1, and normalize them themselves."""
    outputs: Side
    """Classes of `classify` and `segment`, numbers of `regress`, channels of `reconstruct`."""
    classes: tuple[Text, ...] = ()
    """Names of the classes, in the order of the outputs; none where they are the data's alone."""
    ignore: ClassLabel | None = None
    """The label of pixels that count for nothing, with `segment`."""
    mean: tuple[float, ...] = ()
    """What the graphs subtract from each channel, for the reader."""
    std: tuple[float, ...] = ()
    """What they divide it by then."""
    forward_macs: Annotated[int, Meta(ge=0)]
    """Multiply-adds of one image's forward pass."""
    image_bytes: Annotated[int, Meta(ge=0)] = 0
    """Memory that a training step takes for each image of its batch, by the size of what it keeps."""
    frozen: tuple[str, ...] = ()
    """Parameters that stay as params.safetensors has them: they get no gradient and do not travel."""
    files: dict[PartName, PartDigest]
    """BLAKE2s-128 of each file beside this one, in hexadecimal."""
    made_with: dict[Text, Text] = {}
    """Versions of the programs that wrote it."""

    def __post_init__(self) -> None:
        if self.classes and len(self.classes) != self.outputs:
            raise ValueError(f"classes: has {len(self.classes)} names, needs {self.outputs}")


class Network(msgspec.Struct, frozen=True, kw_only=True):
    """A network's folder, whose description has been read. `digest`: DIGEST_BYTES of its model.toml."""

    folder: Path
    file: NetworkFile
    digest: bytes

    @classmethod
    def load(cls, name_or_folder: str | Path) -> Network:
        """Reads the description of a shipped network, or of the one in a folder. Raises NetworkError."""
        folder = network_folder(name_or_folder)
        path = folder / DESCRIPTION
        try:
            file = read(path, NetworkFile)
            raw = path.read_bytes()
        except ConfigError as error:
            raise NetworkError(str(error)) from None
        except OSError as error:
            raise NetworkError(f"{path}: {error.strerror}") from None
        for part in (TRAIN, INFER, *([PARAMETERS] if file.frozen else [])):
            if part not in file.files:
                raise NetworkError(f"{path}: files: {part} is missing")
        return cls(folder=folder, file=file, digest=hashlib.blake2s(raw, digest_size=DIGEST_BYTES).digest())

    @property
    def name(self) -> str:
        return self.file.name

    @property
    def is_shipped(self) -> bool:
        return self.folder == SHIPPED / self.name

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return self.file.input

    @property
    def objective(self) -> Objective:
        return Objective(kind=self.file.task, outputs=self.file.outputs, ignore=self.file.ignore)

    def part(self, name: PartName) -> bytes:
        """Reads a file of the network. Raises NetworkError if it is not the one that the description
        means."""
        path = self.folder / name
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise NetworkError(f"{path}: {error.strerror}") from None
        if part_digest(raw) != self.file.files[name]:
            raise NetworkError(f"{path}: is damaged, or of another network: its digest is not model.toml's")
        return raw

    def parameters(self) -> dict[str, Floats]:
        """Reads the first weights, float32 by name; none if the network brings none. Raises NetworkError."""
        if PARAMETERS not in self.file.files:
            return {}
        raw = self.part(PARAMETERS)
        import numpy as np
        from safetensors import SafetensorError  # a board whose networks bring none goes without
        from safetensors.numpy import load

        try:
            found: dict[str, Floats] = load(raw)
        except SafetensorError as error:
            raise NetworkError(f"{self.folder / PARAMETERS}: {error}") from None
        for name, value in found.items():
            if value.dtype != np.float32:
                raise NetworkError(f"{self.folder / PARAMETERS}: {name} is {value.dtype}, needs float32")
        return found


class CheckVector(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """What a network answers to a few images drawn from `seed`: the training graph's loss, and up to
    CHECKED_LOGITS of the answering graph's logits, in their order."""

    seed: Annotated[int, Meta(ge=0, le=2**32 - 1)]
    loss: float
    logits: Annotated[tuple[float, ...], Meta(min_length=1, max_length=CHECKED_LOGITS)]


def part_digest(raw: bytes) -> str:
    """Returns the digest of a network's file, as its model.toml has it."""
    return hashlib.blake2s(raw, digest_size=16).hexdigest()


def network_folder(name_or_folder: str | Path) -> Path:
    """Returns the folder of a shipped network, or the given one. Raises NetworkError for neither."""
    text = str(name_or_folder)
    if isinstance(name_or_folder, str) and text in shipped():
        return SHIPPED / text
    folder = Path(name_or_folder)
    is_folder = _is_folder(folder)
    if is_folder and (folder / DESCRIPTION).is_file():
        return folder
    if is_folder:
        raise NetworkError(f"{folder}: holds no {DESCRIPTION}; `groundstation export` writes such a folder")
    if "/" in text:
        raise NetworkError(f"{folder}: no such folder; `groundstation export` writes a network's")
    near = difflib.get_close_matches(text, shipped(), n=3, cutoff=0.4) or shipped()
    raise NetworkError(f"no model {text!r}; nearest: {', '.join(near)}; or the folder of a network")


def resolved(name_or_folder: str, base: Path) -> str:
    """Returns what a file in the folder `base` means: a shipped network's name, or a folder seen from
    there."""
    is_folder = name_or_folder not in shipped() and _is_folder(base / name_or_folder)
    return str(base / name_or_folder) if is_folder or "/" in name_or_folder else name_or_folder


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name that no file can have
        return False


def shipped() -> list[str]:
    """Returns the names of the networks that come with this package."""
    return sorted(path.parent.name for path in SHIPPED.glob(f"*/{DESCRIPTION}"))


def network_for(data: str) -> str:
    """The network that is trained on a data source unless another is asked for."""
    if data == "eurosat-water":  # which has masks
        segmenting = (name for name in shipped() if Network.load(name).file.task == "segment")
        return next(segmenting, "lenet5-rgb")
    return "lenet5-rgb" if data.startswith("eurosat") else "lenet5"


def described() -> str:
    """The names, each with the images that it takes, for a command's help."""
    images = {name: "x".join(map(str, Network.load(name).input_shape)) for name in shipped()}
    return ", ".join(f"{name} ({image})" for name, image in images.items())
