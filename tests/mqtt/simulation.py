"""Machines that restore for ever: ``python -m tests.mqtt.simulation PORT MACHINES`` until stdin ends, a message a second each.

Each has a connection of its own with a last will, and encodes its payloads as an agent does.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import resource
import sys
import time

from aiomqtt import ProtocolVersion

from active_restore.mqtt import payloads
from active_restore.mqtt.connection import connected
from active_restore.mqtt.settings import Broker
from active_restore.mqtt.topics import Topics

_STARTS_PER_S = 250.0
_FAREWELL_S = 10.0


async def machine(broker: Broker, number: int) -> None:
    """One of them."""
    await asyncio.sleep(number / _STARTS_PER_S)
    topics = Topics("active-restore", f"machine{number:04}")
    began = time.time()
    steps = [payloads.Step("planning", began), payloads.Step("restoring", began)]
    state = payloads.State(
        node=topics.node, time=began, online=True, phase="restoring", target="/srv", agent="0.1.0", timeline=steps
    )
    will = topics.of("state"), payloads.encode(state, "json")
    async with connected(broker, ProtocolVersion.V5, f"simulated-{number}", will) as client:
        await client.publish(*will, qos=1, retain=True)
        next_at = time.monotonic() + random.random()
        for step in range(1 << 30):
            await asyncio.sleep(max(next_at - time.monotonic(), 0))
            next_at += 1
            waiting = 2 if (step + number) % 20 == 0 else 0
            raw = payloads.encode(_progress(topics.node, step, waiting), "json")
            await client.publish(topics.of("progress"), raw, qos=0, retain=True)
            if waiting:
                await client.publish(topics.of("faults"), payloads.encode(_faults(topics.node, step), "json"))


def _progress(node: str, step: int, waiting: int) -> payloads.Progress:
    done = step * 997 % 100_000
    return payloads.Progress(
        node=node,
        time=time.time(),
        phase="restoring",
        seconds=float(step),
        percent=done / 1000,
        files_total=100_000,
        files_done=done,
        bytes_total=100_000 << 16,
        bytes_done=done << 16,
        rate_bytes_per_s=random.uniform(1e6, 1e8),
        eta_s=random.uniform(1, 5000),
        faults=step,
        refused=0,
        waiting=waiting,
        longest_wait_ms=12.5,
        paused=False,
        limit_bytes_per_s=0,
        source_unreachable_s=0.0,
        lanes={lane: payloads.LaneSum(done // 3, done << 14) for lane in ("demand", "predicted", "background")},
    )


def _faults(node: str, step: int) -> payloads.Faults:
    waits = [payloads.wait(b"db/base/%d" % n, "postgres", 1000 + n, 1000, 12.5 * n) for n in range(8)]
    return payloads.Faults(
        node=node,
        time=time.time(),
        waiting=waits[:2],
        waiting_total=2,
        served=waits,
        served_total=8,
        served_ms=350.0,
        faults_total=step,
    )


async def _main(port: int, machines: int) -> None:
    broker = Broker("127.0.0.1", port)
    tasks = [asyncio.create_task(machine(broker, number)) for number in range(machines)]
    ending = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await asyncio.wait((*tasks, ending), return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    ended, _ = await asyncio.wait(tasks, timeout=_FAREWELL_S)
    failures = [one for task in ended if not task.cancelled() and (one := task.exception())]
    if failures:
        print(failures[0], file=sys.stderr, flush=True)
    # Machines that are cut off in the middle of a greeting may wait for its answer for ever: asyncio would wait for them.
    os._exit(1 if failures else 0)


if __name__ == "__main__":
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536), hard))
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_main(int(sys.argv[1]), int(sys.argv[2])))
