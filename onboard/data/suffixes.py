"""Which files are images by their names, and which names systems leave behind; it needs no numpy."""

from __future__ import annotations

# Pillow decodes those that its build can; the others are refused by name.
IMAGE_SUFFIXES = frozenset(
    {
        ".png", ".apng", ".avif", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".tif", ".tiff", ".webp",
        ".pgm", ".ppm", ".pnm", ".pbm", ".gif", ".jp2", ".j2k", ".tga",
    }
)  # fmt: skip
JUNK = frozenset(
    {
        "__macosx", "@eadir", "@recycle", "@recently-snapshot", "@tmp", "#recycle", "#snapshot", "lost+found",
        "$recycle.bin", "recycler", "system volume information", "__pycache__", "thumbs.db", "ehthumbs.db",
        "ehthumbs_vista.db", "desktop.ini", "icon\r",
    }
)  # fmt: skip


def is_junk(name: str) -> bool:
    return name.startswith(".") or name.casefold() in JUNK


def as_text(name: str) -> str:
    """A file's name as it can be written and sent: bytes that are no UTF-8 are spelled out."""
    return name.encode("utf-8", "backslashreplace").decode()
