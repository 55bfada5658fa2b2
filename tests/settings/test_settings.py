"""The configuration file: defaults, what is refused and how that is said, and that no secret is shown."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from active_restore.cli.main import main
from active_restore.config import LimitWindow
from active_restore.settings.file import SettingsError, load
from active_restore.settings.tables import MqttTable, NamedRestore, Settings

if TYPE_CHECKING:
    from pydantic import BaseModel

TEMPLATE = Path(__file__).parents[2] / "systemd/agent.toml"


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "agent.toml"
    monkeypatch.setenv("ACTIVE_RESTORE_CONFIG", str(path))
    return path


def test_no_file_means_defaults(file: Path) -> None:
    assert not file.exists()
    assert load() == Settings()


def test_the_template_changes_nothing(file: Path) -> None:
    file.write_text(TEMPLATE.read_text())
    assert load() == Settings()


def keys(model: type[BaseModel]) -> set[str]:
    return set(model.model_fields)


def test_the_template_shows_every_key_with_its_default(file: Path) -> None:
    file.write_text(re.sub(r"^#(?! )", "", TEMPLATE.read_text(), flags=re.MULTILINE))
    text = file.read_text().replace('password_credential = "mqtt-password"\n', "")
    file.write_text(text)
    found = load()
    assert keys(MqttTable) - found.mqtt.model_fields_set == {"password_credential"}
    assert found.restores.keys() == {"web"}
    assert keys(NamedRestore) - found.restores["web"].model_fields_set == keys(type(found.restore))
    for name in ("restore", "service", "policy", "relax", "metrics", "log"):
        table = getattr(found, name)
        assert keys(type(table)) == table.model_fields_set
    examples = {"broker", "username", "password_file", "ca_file", "cert_file", "key_file", "host"}
    assert found.mqtt.model_dump(exclude=examples) == MqttTable().model_dump(exclude=examples)
    for name in ("restore", "service", "policy", "relax", "log"):
        assert getattr(found, name) == getattr(Settings(), name)


def test_values_arrive(file: Path) -> None:
    file.write_text(
        "[service]\ntarget_wait = 0\nretry = 5\n[metrics]\ntextfile = '/m/x.prom'\ninterval = 0.5\n[log]\nlevel = 'debug'\n"
        "[mqtt]\nbroker = 'mqtts://h:8884'\nqos = 2\ntopic_prefix = 'a/b'\nprogress_interval = 2\nfaults_interval = 3\n"
        "keepalive = 9\ndiscovery = true\ndiscovery_prefix = 'ha'\npassword_credential = 'p'\n"
    )
    found = load()
    assert (found.service.target_wait, found.service.retry) == (0, 5)
    assert (found.metrics.textfile, found.metrics.interval, found.log.level) == ("/m/x.prom", 0.5, "debug")
    mqtt = found.mqtt
    assert (mqtt.broker, mqtt.qos, mqtt.topic_prefix, mqtt.password_credential) == ("mqtts://h:8884", 2, "a/b", "p")
    assert (mqtt.progress_interval, mqtt.faults_interval, mqtt.keepalive) == (2, 3, 9)
    assert (mqtt.discovery, mqtt.discovery_prefix, mqtt.commands) == (True, "ha", False)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[mqt]", 'mqt: unknown key (did you mean "mqtt"?); allowed: restore, restores, service, policy, relax, mqtt, metrics'),
        ("[metrics]\ntextfiel = 'x'", 'metrics.textfiel: unknown key (did you mean "textfile"?); allowed: textfile, interval'),
        ("[mqtt]\nqos = 3", "mqtt.qos: 3 is not allowed; allowed: 0, 1 or 2"),
        ("[mqtt]\nqos = true", "mqtt.qos: true is not allowed; allowed: 0, 1 or 2"),
        ("[mqtt]\ncommands = 'yes'", "mqtt.commands: this text is not allowed; allowed: true or false"),
        ("[mqtt]\nformat = 'xml'", 'mqtt.format: this text is not allowed; allowed: "json", "msgpack"'),
        ("[mqtt]\ntopic_prefix = 'a/#'", 'mqtt.topic_prefix: not a topic; allowed: a topic like "active-restore" or "site/a"'),
        ("[mqtt]\nca_file = 'ca.pem'", "mqtt.ca_file: not an absolute path; allowed: an absolute path"),
        ("[mqtt]\nhost = 'a/b'", "mqtt.host: this text is not allowed; allowed: one level of a topic"),
        ("[mqtt]\nkey_file = '/k'", "mqtt: key_file needs cert_file"),
        ("[mqtt]\nbroker='mqtt://h'\nca_file = '/k'", "mqtt: ca_file and cert_file need a broker with mqtts:// or wss://"),
        ("mqtt = 1", "mqtt: must be a table"),
        ("[restore]\nlimit = 'fast'", 'restore.limit: not a limit; allowed: like "50MB/s", by hours'),
        ("[restore]\nlimit = -1", "restore.limit: not a limit; allowed: like"),
        ("[restore]\nfault_timeout = 0", "restore.fault_timeout: 0 is not allowed; allowed: 0.1 to 86400 (seconds)"),
        ("[restore]\nfault_timeout = nan", "restore.fault_timeout: nan is not allowed"),
        ("[restore]\nexisting = 'maybe'", 'restore.existing: this text is not allowed; allowed: "refuse", "metadata"'),
        ("[policy]\nrefuse = ['updatedb']", "policy.refuse.0: this text is not allowed; allowed: a list like"),
        ("[policy]\nrefuse = ['cgroup:a/b']", "policy.refuse.0: this text is not allowed; allowed: a list like"),
        ("[relax]\ndirectories = '/srv'", "relax.directories: this text is not allowed; allowed: a list of absolute paths"),
        ("[relax]\ndirectories = ['srv']", "relax.directories.0: not an absolute path; allowed: a list of absolute paths"),
        ("[relax]\nlearn = -1", "relax.learn: -1 is not allowed; allowed: 0 to 86400 (seconds; 0: always)"),
        ("[restores.web]\nsource = 'dir:/x'", "restores.web.target: missing; allowed: an absolute path"),
        ("[restores.a]\nsource = 'dir:/'\ntarget = '/t'\nexclude = 'x'", "restores.a.exclude: this text is not allowed;"),
        ("[restores.'a b']\nsource = 'dir:/x'\ntarget = '/t'", "restores.a b: not a name; allowed: letters, digits, _ and -"),
        ("[restores.web]\nsuorce = 'dir:/x'\ntarget = '/t'", "restores.web.source: missing; allowed: dir:PATH"),
        ("restores = 5", "restores: must be a table"),
        ("[mqtt", "not TOML: "),
        ("[mqtt]\nqos = 1\nqos = 2", "not TOML: "),
    ],
)  # fmt: skip
def test_what_is_wrong_names_file_key_and_what_is_allowed(
    file: Path, text: str, line: str, capfd: pytest.CaptureFixture[str]
) -> None:
    file.write_text(text)
    assert main(["config", "check"]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert f"{file}: {line}" in err
    assert "Traceback" not in err


def test_all_that_is_wrong_is_said(file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file.write_text("[mqtt]\nqos = 5\nfromat = 'json'\n[log]\nlevel = 'loud'\n")
    assert main(["config", "check"]) == 2
    err = capfd.readouterr().err
    assert "hint" not in err
    assert {"mqtt.qos", "mqtt.fromat", "log.level"} <= set(re.findall(r"[a-z]+\.[a-z]+(?=:)", err))
    assert main(["restore", "dir:/x", "/y"]) == 2
    assert "(and 2 more)" in capfd.readouterr().err


SECRETS = [
    "[mqtt]\npassword = 'geheim'",
    "[mqtt]\nbroker = 'mqtt://agent:geheim@host'",
    "[mqtt]\nbroker = 'http://agent:geheim@host'",
    "[mqtt]\nbroker = 'mqtt://agent:geheim@host:port'",
    "[mqtt]\npassword_file = 'geheim'",
    "[restore]\nlimit = 'geheim'",
    "[restore]\nlimit = ['geheim']",
    "[mqtt]\npassword = geheim",
    "[restores.web]\ntarget = '/t'\nsource = 'restic:rest:http://user:geheim@host:8000/x'",
]


@pytest.mark.parametrize("text", SECRETS)
def test_no_secret_is_ever_shown(file: Path, text: str, capfd: pytest.CaptureFixture[str]) -> None:
    file.write_text(text)
    for command in (["check"], ["show"], ["show", "--json"], ["check", "--json"], ["check", "--debug"], ["show", "--debug"]):
        main(["config", *command])
        out, err = capfd.readouterr()
        assert "geheim" not in out + err, command
        assert out + err


def test_show_is_the_whole_file_with_defaults(file: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file.write_text(
        "[restore]\nlimit = '1MB/s'\ninterceptor = 'fanotify'\n"
        "[restores.web]\nsource = 'dir:/x'\ntarget = '/t'\nlimit = 0\n[mqtt]\nbroker = 'mqtts://agent@host'\n"
    )
    assert main(["config", "show"]) == 0
    shown = capfd.readouterr().out
    again = tmp_path / "again.toml"
    again.write_text(shown)
    assert load(again).mqtt == load().mqtt
    web = load().named("web")
    assert web is not None
    assert (web.limit, web.interceptor, web.existing) == ("0", "fanotify", "refuse")
    assert load(again).restores["web"] == web
    assert main(["config", "show", str(again), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["restore"]["limit"] == "1MB/s"


def test_a_limit_by_hours(file: Path) -> None:
    file.write_text("[restores.a]\nsource = 'dir:/x'\ntarget = '/t'\nlimit = '1MB/s 08:00-18:00, 5MB/s'\nthrottle = 'off'\n")
    options = load().restores["a"].options()
    assert (options.limit_bytes_per_s, options.limit_windows, options.throttle) == (
        5_000_000,
        (LimitWindow(8 * 60, 18 * 60, 1_000_000),),
        "off",
    )


@settings(deadline=None)
@given(st.text())
def test_no_text_makes_it_fail_otherwise(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with contextlib.suppress(SettingsError):
        assert load(path) == Settings()
