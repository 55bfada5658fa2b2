"""``active-restore restore``: lay placeholders, say ready, fill the rest while the system runs."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, get_args

from active_restore.cli import command, telling
from active_restore.config import Existing, Hold, InterceptorName, RestoreOptions, Throttle
from active_restore.errors import UsageError
from active_restore.schedule import parse_schedule
from active_restore.settings.file import load

if TYPE_CHECKING:
    from active_restore.cli.command import Subcommands
    from active_restore.restore.progress import Done, Reporter
    from active_restore.settings.tables import RestoreTable

PARTLY = 3
"""Exit code: finished, but some files were refused."""
_LONGEST_HEAD_START_S = 60.0


def add(commands: Subcommands, common: argparse.ArgumentParser) -> None:
    """Declare the command."""
    parser = command.declare(commands, common, "restore", "restore a snapshot onto placeholders, the rest follows", run)
    parser.add_argument("source", metavar="SOURCE", help="dir:PATH or restic:REPOSITORY (in restic's own spelling)")
    parser.add_argument("target", metavar="TARGET", help="the directory to restore; made where it does not exist")
    command.add_snapshot(parser)
    parser.add_argument(
        "--existing",
        choices=get_args(Existing),
        help="what to do where TARGET is not empty: refuse it (default), or keep what matches by metadata or by content",
    )
    parser.add_argument(
        "--limit",
        metavar="RATE",
        help='limit of the background: 50MB/s, or by hours "20MB/s 08:00-18:00, 50MB/s" (default: none)',
    )
    parser.add_argument("--interceptor", choices=get_args(InterceptorName), help="what holds tasks (default: auto)")
    parser.add_argument(
        "--hold",
        choices=get_args(Hold),
        default="ptrace",
        help="how bpf holds tasks: each thread alone by ptrace (default), or its whole process by SIGSTOP",
    )
    parser.add_argument(
        "--fault-timeout",
        type=float,
        metavar="S",
        help="seconds that tasks wait for a source that cannot be reached (default: 600)",
    )
    parser.add_argument(
        "--throttle",
        choices=get_args(Throttle),
        help="auto: the background yields to whoever else uses the machine; off (default): it takes what it can get",
    )
    parser.add_argument(
        "--connections",
        type=int,
        choices=range(1, 65),
        default=0,
        metavar="N",
        help="at most N requests at a time to a remote source; with 2 or more, one is kept for tasks that wait",
    )
    parser.add_argument("--order", metavar="FILE", help="fill in this recorded order instead of the snapshot's own")
    parser.add_argument(
        "--head-start",
        type=float,
        metavar="S",
        help="seconds for the first files of that order before all is ready (default: 1; 0: none)",
    )
    # For measuring; 0 lets the agent choose.
    parser.add_argument("--workers", type=int, choices=range(17), default=0, help=argparse.SUPPRESS)
    telling.add_mqtt(parser)
    command.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Restore."""
    options = _options(arguments, load().restore)
    # Only now: it brings every library with it, and what is mistyped should be told at once.
    import active_restore.agent as agent

    with telling.told(arguments, options.target) as (told, link):
        return finish(agent.restore(options, told, os.environ, link), told)


def _options(arguments: argparse.Namespace, defaults: RestoreTable) -> RestoreOptions:
    """The job: what the command line says, else what the configuration file says."""
    command.selection(arguments)  # a pattern that is wrong is told before anything else is tried
    fault_timeout_s = defaults.fault_timeout if arguments.fault_timeout is None else arguments.fault_timeout
    if not fault_timeout_s > 0:
        raise UsageError("--fault-timeout must be more than 0 seconds")
    head_start_s = defaults.head_start if arguments.head_start is None else arguments.head_start
    if not 0 <= head_start_s <= _LONGEST_HEAD_START_S:
        raise UsageError(f"--head-start must be 0 to {_LONGEST_HEAD_START_S:.0f} seconds")
    limit = parse_schedule(defaults.limit if arguments.limit is None else arguments.limit)
    snapshot, subfolder = arguments.snapshot
    return RestoreOptions(
        source=arguments.source,
        target=command.absolute(arguments.target),
        snapshot=snapshot,
        subfolder=subfolder,
        include=tuple(arguments.include),
        exclude=tuple(arguments.exclude),
        existing=arguments.existing or defaults.existing,
        interceptor=arguments.interceptor or defaults.interceptor,
        hold=arguments.hold,
        limit_bytes_per_s=limit.bytes_per_s,
        limit_windows=limit.windows,
        throttle=arguments.throttle or defaults.throttle,
        fault_timeout_s=fault_timeout_s,
        workers=arguments.workers,
        order=_order(arguments.order),
        head_start_s=head_start_s,
        connections=arguments.connections,
    )


def _order(path: str | None) -> str:
    if path is None:
        return ""
    from active_restore.predict import carried

    carried.load(path)
    return os.path.abspath(path)


def finish(done: Done, told: Reporter) -> int:
    """Tell the end, now that nothing of us is left; 0 where everything was restored, else 3."""
    told.event(done)
    return PARTLY if done.refused else 0
