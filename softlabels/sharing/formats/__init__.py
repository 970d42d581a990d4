"""Layouts of other tools: each file reads one into samples, and writes a label set as one."""

from __future__ import annotations

from softlabels.sharing.formats.arrays import Arrays
from softlabels.sharing.formats.axolotl import Axolotl
from softlabels.sharing.formats.distillkit import DistillKit
from softlabels.sharing.formats.lists import FloatLists
from softlabels.sharing.formats.sample import Format, Sample

__all__ = ["Arrays", "Axolotl", "DistillKit", "FloatLists", "Format", "Sample"]
