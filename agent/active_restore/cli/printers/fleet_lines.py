"""A fleet told line by line: for logs and pipes that people read, and for programs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

from active_restore.cli.printers.output import write_line
from active_restore.cli.quantities import count, duration, size, waited
from active_restore.control.names import shown

if TYPE_CHECKING:
    from active_restore.mqtt.fleet import Change, Fleet, Machine
    from active_restore.mqtt.payloads import Report

_SUMMARY_EVERY_S = 10.0


class JsonLines:
    """Every message as one object, ``event`` and ``node`` beside its fields."""

    def change(self, change: Change) -> None:
        """One line."""
        fields = {"event": change.kind, "node": change.machine.node, **msgspec.to_builtins(change.payload)}
        write_line(1, msgspec.json.encode(fields).decode())

    def draw(self, fleet: Fleet, now: float, trouble: str) -> None:
        """Nothing changes by itself."""

    def close(self, fleet: Fleet, now: float) -> None:
        """Everything is out already."""


class PlainLines:
    """A line when a machine's phase changes, when tasks begin to wait, and at the end; every ten seconds one about all."""

    def __init__(self) -> None:
        self._waiting: set[str] = set()
        self._told_at = time.monotonic()
        self._trouble = "connecting"

    def change(self, change: Change) -> None:
        """The line of one change, if it has any."""
        machine = change.machine
        if change.kind == "report" and machine.report is not None:
            write_line(1, f"{shown(machine.node)}: {report_words(machine.report)}")
        elif machine.phase != change.old_phase and machine.state is not None:
            write_line(1, f"{shown(machine.node)}: {phase_words(machine)}")
        if bool(machine.waiting) != (machine.node in self._waiting):
            self._waiting ^= {machine.node}
            write_line(1, f"{shown(machine.node)}: {waiting_words(machine) or 'no task waits any more'}")

    def draw(self, fleet: Fleet, now: float, trouble: str) -> None:
        """What has to be said about the broker and about all machines."""
        if trouble != self._trouble:
            self._trouble = trouble
            write_line(1, f"the broker cannot be heard: {shown(trouble)}; trying again" if trouble else "the broker is heard")
        if now - self._told_at >= _SUMMARY_EVERY_S:
            self._told_at = now
            write_line(1, summary(fleet.machines()))

    def close(self, fleet: Fleet, now: float) -> None:
        """All of them once more."""
        write_line(1, summary(fleet.machines()))


def summary(machines: list[Machine]) -> str:
    """All machines in one line."""
    working = sum(machine.is_working for machine in machines)
    lost = sum(machine.phase == "lost" for machine in machines)
    failed = sum(machine.phase == "failed" for machine in machines)
    parts = [count(len(machines), "machine"), f"{working:,} restoring"]
    if lost:
        parts.append(f"{lost:,} LOST")
    if failed:
        parts.append(f"{failed:,} FAILED")
    waiting = sum(machine.waiting for machine in machines)
    parts.append(f"{count(waiting, 'task')} waiting")
    parts.append(f"{size(sum(machine.rate_bytes_per_s for machine in machines))}/s")
    return ", ".join(parts)


def phase_words(machine: Machine) -> str:
    """The phase, and whether the background stands still."""
    phase = shown(machine.phase)
    return f"{phase} (paused)" if machine.is_working and machine.progress is not None and machine.progress.paused else phase


def waiting_words(machine: Machine) -> str:
    """How many tasks wait, and the longest wait; empty where none does."""
    if not machine.waiting:
        return ""
    waits = machine.faults.waiting if machine.faults is not None else []
    longest = f", the longest {waited(max(wait.waited_ms for wait in waits))} for {shown(waits[0].path)}" if waits else ""
    return f"{count(machine.waiting, 'task')} waiting{longest}"


def report_words(report: Report) -> str:
    """How a restore ended."""
    if report.error:
        return f"{report.outcome}: {shown(report.error.message)}"
    refused = f", {count(report.refused, 'file')} could NOT be restored" if report.refused else ""
    what = f"{count(report.files, 'file')}, {size(report.bytes)} in {duration(report.seconds)}"
    return f"{report.outcome}: {what}, {count(report.faults, 'fault')} served{refused}"
