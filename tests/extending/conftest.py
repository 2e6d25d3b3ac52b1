"""Whole missions for what is added."""

from __future__ import annotations

from tests.missions.conftest import clockwork

__all__ = ["clockwork"]
