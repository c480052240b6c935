"""Layouts of a machine: how many servers, and over how many GPUs each."""

from __future__ import annotations

from tuner.layout.layout import AUTO, FLAGS, Layout, PlacedLayout, RuledOut, parse_layouts, split_layout

__all__ = ["AUTO", "FLAGS", "Layout", "PlacedLayout", "RuledOut", "parse_layouts", "split_layout"]
