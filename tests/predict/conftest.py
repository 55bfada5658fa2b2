"""Fixtures: disks and rigs, and programs that were really linked."""

from tests.kernel.fixtures import disk, disks, ext4, ext4_target, held_rig, rig, target

__all__ = ["disk", "disks", "ext4", "ext4_target", "held_rig", "rig", "target"]
