"""Commands by the broker: who is obeyed, what is answered, and where."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

import jsonschema
import msgpack
import pytest
from pydantic import TypeAdapter

from active_restore.control import messages
from active_restore.control.messages import Answer
from active_restore.errors import ActiveRestoreError
from active_restore.mqtt.publisher import Publisher
from active_restore.mqtt.settings import Broker, Protocol
from tests.kernel.waiting import wait_until
from tests.mqtt import samples
from tests.mqtt.samples import SCHEMAS, settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from active_restore.config import LimitWindow
    from active_restore.restore.progress import Status
    from tests.kernel.rig import Rig
    from tests.mqtt.broker import Mosquitto
    from tests.mqtt.ear import Ear, Heard

COMMAND, ANSWER = "active-restore/web1/command", "active-restore/web1/answer"


class Recorder:
    """A restore that only remembers what it was told."""

    def __init__(self) -> None:
        self.calls: list[object] = []

    def status(self) -> Status:
        return samples.status(waiting=1)

    def promote(self, paths: Sequence[bytes]) -> int:
        if paths == [b"boom"]:
            raise RuntimeError("s3cret")
        self.calls.append(list(paths))
        return len(paths)

    def pause(self) -> None:
        self.calls.append("pause")

    def proceed(self) -> None:
        raise ActiveRestoreError("not now", "later")

    def limit(self, bytes_per_s: int, windows: Sequence[LimitWindow] = ()) -> None:
        self.calls.append([bytes_per_s, *windows] if windows else bytes_per_s)

    def stop(self) -> None:
        self.calls.append("stop")


@contextlib.contextmanager
def serving(ear: Ear, address: Broker, *, accept: bool = True) -> Iterator[Recorder]:
    recorder = Recorder()
    with Publisher(settings(0, broker=address, accept_commands=accept), samples.TARGET) as publisher:
        publisher.begin("1f", samples.SOURCE, recorder)
        ear.until("state", lambda state: state.restore_id == "1f")
        yield recorder


@pytest.fixture
def recorder(broker: Mosquitto, ear: Ear) -> Iterator[Recorder]:
    with serving(ear, Broker("127.0.0.1", broker.port)) as one:
        yield one


def ask(ear: Ear, command: dict[str, Any] | bytes, topic: str = ANSWER, **more: Any) -> dict[str, Any]:
    """The answer to a command."""
    payload = json.dumps(command).encode() if isinstance(command, dict) else command
    heard = len(ear.heard)

    def answers() -> list[Heard]:
        return [one for one in ear.heard[heard:] if one.topic == topic]

    ear.say(COMMAND, payload, **more)
    wait_until(answers, "an answer")
    raw = answers()[0].payload
    answer: dict[str, Any] = json.loads(raw) if raw[:1] == b"{" else msgpack.unpackb(raw)
    jsonschema.validate(answer, json.loads((SCHEMAS / "answer.json").read_text()))
    return answer


def test_each_command(recorder: Recorder, ear: Ear) -> None:
    assert ask(ear, {"version": 1, "command": "pause"}) == {"version": 1, "ok": True}
    assert ask(ear, {"command": "limit", "bytes_per_s": 5000, "id": 7}) == {"version": 1, "ok": True, "id": 7}
    assert ask(ear, {"command": "promote", "paths": [{"path": "db"}]})["promoted"] == 1
    assert recorder.calls == ["pause", 5000, [b"db"]]
    status = ask(ear, {"command": "status"})["status"]
    assert (status["files_done"], status["source"]) == (5, "restic:rest:http://bob@store/repo")
    assert ask(ear, {"command": "continue"})["error"] == {"code": "failed", "message": "not now", "hint": "later"}


def test_response_topic_and_correlation(recorder: Recorder, ear: Ear) -> None:
    ask(ear, {"command": "pause"}, f"{ANSWER}/console/7", answer=f"{ANSWER}/console/7", correlation=b"\x00abc")
    answer = next(heard for heard in ear.heard if heard.topic.endswith("/console/7"))
    assert (answer.correlation, answer.content_type) == (b"\x00abc", "application/json")
    assert recorder.calls == ["pause"]


@pytest.mark.parametrize("topic", ["active-restore/web2/state", "active-restore/web1/state", "x"])
def test_nobody_publishes_through_us(recorder: Recorder, ear: Ear, topic: str) -> None:
    answer = ask(ear, {"command": "pause"}, answer=topic, correlation=b"1")
    assert answer["error"]["code"] == "usage"
    assert recorder.calls == []
    assert not [heard for heard in ear.heard if heard.correlation and heard.topic != ANSWER and heard.topic != COMMAND]


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"pause",
        b"{",
        b"[]",
        b"{}",
        b"\xc1",
        b'{"command": "stop"}',
        b'{"command": "reboot"}',
        b'{"command": "pause", "more": 1}',
        b'{"version": 2, "command": "pause"}',
        b'{"command": "limit", "bytes_per_s": -1}',
        b'{"command": "limit", "bytes_per_s": "5"}',
        b'{"command": "promote", "paths": []}',
        b'{"command": "promote", "paths": [{"path": "a\\u0000b"}]}',
        b'{"command": "pause", "id": [1]}',
        b'{"command": "pause", "id": "' + b"x" * 200 + b'"}',
        b'{"command": "pause", "id": ' + b"[" * 30000 + b"]" * 30000 + b"}",
        msgpack.packb({1: 2}),
        msgpack.packb({"command": b"pause"}),
    ],
    ids=lambda payload: repr(payload[:40]),
)
def test_what_is_no_command(recorder: Recorder, ear: Ear, payload: bytes) -> None:
    answer = ask(ear, payload)
    assert answer["ok"] is False
    assert answer["error"]["code"] == "usage"
    assert recorder.calls == []


def test_msgpack_is_answered_in_msgpack(recorder: Recorder, ear: Ear) -> None:
    assert ask(ear, msgpack.packb({"command": "pause", "id": "a"})) == {"version": 1, "ok": True, "id": "a"}
    assert recorder.calls == ["pause"]
    assert [heard.content_type for heard in ear.of("answer")][-1] == "application/msgpack"


def test_a_command_that_breaks_ends_nothing(recorder: Recorder, ear: Ear) -> None:
    answer = ask(ear, {"command": "promote", "paths": [{"path": "boom"}]})
    assert answer["error"]["message"] == "the agent could not do that; see its log"
    assert ask(ear, {"command": "pause"})["ok"] is True
    assert recorder.calls == ["pause"]


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_retained_commands_are_old(broker: Mosquitto, ear: Ear, protocol: Protocol) -> None:
    ear.say(COMMAND, b'{"command": "limit", "bytes_per_s": 1}', retain=True)
    with serving(ear, Broker("127.0.0.1", broker.port, protocol=protocol)) as recorder:
        ask(ear, {"command": "pause"})
        assert recorder.calls == ["pause"]


def test_a_flood_is_survived(recorder: Recorder, ear: Ear) -> None:
    for _ in range(300):
        ear.say(COMMAND, b'{"command": "status"}')

    def last() -> bool:
        ear.say(COMMAND, b'{"command": "pause", "id": "last"}')
        return any(b'"last"' in heard.payload for heard in ear.of("answer"))

    wait_until(last, "an answer after the flood")
    assert "pause" in recorder.calls


def test_commands_are_off_by_default(broker: Mosquitto, ear: Ear) -> None:
    with serving(ear, Broker("127.0.0.1", broker.port), accept=False) as recorder:
        assert ear.until("state").accepts_commands is False
        ear.say(COMMAND, b'{"command": "pause"}')
        wait_until(lambda: ear.of("command"), "the command on the broker")
    assert recorder.calls == []
    assert ear.of("answer") == []


def test_a_real_restore_obeys(held_rig: Rig, ext4_target: Path, broker: Mosquitto, ear: Ear) -> None:
    config = held_rig.place / "agent.toml"
    config.write_text(f'[mqtt]\nbroker = "mqtt://127.0.0.1:{broker.port}"\nhost = "web1"\ncommands = true\n')
    held_rig.env["ACTIVE_RESTORE_CONFIG"] = str(config)
    (held_rig.tree / "last").write_bytes(b"x")
    agent = held_rig.hold(ext4_target)
    ear.until("state", lambda state: state.accepts_commands and state.phase == "restoring")
    assert ask(ear, {"command": "pause"})["ok"] is True
    assert ear.until("state", lambda state: state.paused).limit_bytes_per_s == 1
    assert ask(ear, {"command": "promote", "paths": [{"path": "last"}]})["promoted"] == 1
    assert ask(ear, {"command": "status"})["status"]["paused"] is True
    assert ask(ear, {"command": "limit", "bytes_per_s": 0})["ok"] is True
    assert ask(ear, {"command": "continue"})["ok"] is True
    agent.until("done")
    assert agent.end()[0] == 0
    held_rig.verify(ext4_target)


def _schemas() -> dict[str, dict[str, Any]]:
    """What may be asked and what is answered; ``stop`` is for the control socket alone."""
    requests = (
        messages.StatusRequest
        | messages.PauseRequest
        | messages.ContinueRequest
        | messages.LimitRequest
        | messages.PromoteRequest
    )
    name: dict[str, Any] = {"id": {"type": ["string", "integer"], "maxLength": 128}}
    command = TypeAdapter(requests).json_schema()
    for one in command["$defs"].values():
        if "command" in one["properties"]:
            one["properties"] |= name
    answer = TypeAdapter(Answer).json_schema()
    answer["properties"] |= name
    draft = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return {"command": {**draft, **command, "title": "command"}, "answer": {**draft, **answer, "title": "answer"}}


@pytest.mark.parametrize("kind", ["command", "answer"])
def test_the_published_schemas_are_those_of_the_code(kind: str) -> None:
    file = SCHEMAS / f"{kind}.json"
    assert json.loads(file.read_text()) == _schemas()[kind], f"{file} is old; run: python -m tests.mqtt.test_commands"
    example = {"command": "limit", "bytes_per_s": 5, "id": 1}
    if kind == "command":
        jsonschema.validate(example, json.loads(file.read_text()))


if __name__ == "__main__":
    for title, schema in _schemas().items():
        (SCHEMAS / f"{title}.json").write_text(json.dumps(schema, indent=1) + "\n")
