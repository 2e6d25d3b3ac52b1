"""Uses the model that a mission has deployed to a board, as another program on that board would.

python examples/use_the_model.py mission/boards/pi/state/deployed.bin
"""

from __future__ import annotations

import sys
from pathlib import Path

from onboard.data.loading import load
from onboard.inference.model import of_object


def main(path: Path) -> None:
    """Draws one digit that no board has seen, says what the model takes it for, and how often it is right."""
    model = of_object(path.read_bytes())  # packed on the disk, as it travelled
    images = load("digits", part="test")
    for row in images.x[0, 0, ::2]:
        print("".join(" .:*#"[pixel // 52] for pixel in row))
    found = model.logits(images.x).argmax(axis=1)
    print(f"the model takes this for a {model.classes[found[0]]}; it is a {images.classes[images.y[0]]}")
    print(f"{100 * (found == images.y).mean():.1f} % of {len(images)} test images are recognized")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
