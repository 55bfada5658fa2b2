"""The tables of the configuration file. A field's ``description`` says what it allows and is part of error messages."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from active_restore.config import Existing, InterceptorName, Policy, RestoreOptions, Throttle
from active_restore.schedule import parse_schedule
from active_restore.settings.values import AbsolutePath, BrokerUrl, CredentialName, Crowd, HostName, Limit, TopicPrefix

LogLevel = Literal["debug", "info", "warning", "error"]
MessageFormat = Literal["json", "msgpack"]
Seconds = Annotated[float, Field(ge=0.1, le=86400, description="0.1 to 86400 (seconds)")]
Flag = Annotated[bool, Field(description="true or false")]
Directories = Annotated[tuple[AbsolutePath, ...], Field(strict=False, description='a list of absolute paths like ["/srv"]')]
Texts = Annotated[tuple[str, ...], Field(strict=False, description='a list like ["*.log", "/var/tmp"]')]


class Table(BaseModel):
    """What all tables have in common: nothing unknown, nothing converted silently, nothing changed later."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def _one_of(values: object) -> Any:
    return Field(description=", ".join(f'"{value}"' for value in get_args(values)))


class RestoreTable(Table):
    """``[restore]``: what ``active-restore restore`` does where its options say nothing."""

    existing: Annotated[Existing, _one_of(Existing)] = "refuse"
    interceptor: Annotated[InterceptorName, _one_of(InterceptorName)] = "auto"
    limit: Limit = "0"
    throttle: Annotated[Throttle, _one_of(Throttle)] = "off"
    fault_timeout: Seconds = 600.0
    head_start: Annotated[float, Field(ge=0, le=60, description="0 to 60 (seconds)")] = 1.0


class NamedRestore(RestoreTable):
    """``[restores.NAME]``: a whole restore, for ``active-restore@NAME.service``."""

    source: Annotated[str, Field(min_length=1, description="dir:PATH or restic:REPOSITORY")]
    target: AbsolutePath
    snapshot: Annotated[str, Field(description='an id or "latest", and ":SUBFOLDER" behind it')] = "latest"
    include: Texts = ()
    exclude: Texts = ()
    password_file: AbsolutePath | None = None

    def options(self) -> RestoreOptions:
        """The same as a job."""
        limit = parse_schedule(self.limit)
        snapshot, _, subfolder = self.snapshot.partition(":")
        return RestoreOptions(
            source=self.source,
            target=self.target,
            snapshot=snapshot or "latest",
            subfolder=subfolder,
            include=self.include,
            exclude=self.exclude,
            existing=self.existing,
            interceptor=self.interceptor,
            limit_bytes_per_s=limit.bytes_per_s,
            limit_windows=limit.windows,
            throttle=self.throttle,
            fault_timeout_s=self.fault_timeout,
            head_start_s=self.head_start,
        )


class ServiceTable(Table):
    """``[service]``: how ``active-restore agent`` behaves."""

    target_wait: Annotated[float, Field(ge=0, le=3600, description="0 to 3600 (seconds)")] = 60.0
    retry: Seconds = 10.0


class RelaxTable(Table):
    """``[relax]``: what ``active-restore relax`` watches while no restore runs."""

    directories: Directories = ()
    learn: Annotated[float, Field(ge=0, le=86400, description="0 to 86400 (seconds; 0: always)")] = 600.0
    ignore: Texts = ("*backup*", "restic", "borg*", "rsync", "tar", "updatedb*", "man-db*", "apt-daily*")


class PolicyTable(Table):
    """``[policy]``: tasks that are not served at once. What is said about a cgroup goes before what is said about a command."""

    background: Crowd = ()
    refuse: Crowd = ()

    def policy(self) -> Policy:
        """The same as a value."""
        return Policy(self.background, self.refuse)


class MqttTable(Table):
    """``[mqtt]``: publishing to a broker; off without ``broker``. Intervals are seconds."""

    broker: BrokerUrl | None = None
    username: Annotated[str, Field(min_length=1, description="a name")] | None = None
    password_file: AbsolutePath | None = None
    password_credential: CredentialName | None = None
    ca_file: AbsolutePath | None = None
    cert_file: AbsolutePath | None = None
    key_file: AbsolutePath | None = None
    host: HostName | None = None
    topic_prefix: TopicPrefix = "active-restore"
    format: Annotated[MessageFormat, _one_of(MessageFormat)] = "json"
    qos: Annotated[int, Field(ge=0, le=2, description="0, 1 or 2")] = 1
    progress_interval: Seconds = 1.0
    faults_interval: Seconds = 1.0
    keepalive: Annotated[int, Field(ge=5, le=3600, description="5 to 3600 (seconds)")] = 30
    discovery: Flag = False
    discovery_prefix: TopicPrefix = "homeassistant"
    commands: Flag = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.password_file and self.password_credential:
            raise ValueError("password_file and password_credential exclude each other")
        if self.key_file and not self.cert_file:
            raise ValueError("key_file needs cert_file")
        if self.discovery and self.format != "json":
            raise ValueError('discovery needs format = "json"')
        secure = self.broker is not None and self.broker.startswith(("mqtts:", "wss:"))
        if (self.ca_file or self.cert_file) and not secure:
            raise ValueError("ca_file and cert_file need a broker with mqtts:// or wss://")
        return self


class MetricsTable(Table):
    """``[metrics]``: a text file for Prometheus' node exporter; off without ``textfile``."""

    textfile: AbsolutePath | None = None
    interval: Seconds = 15.0


class LogTable(Table):
    """``[log]``."""

    level: Annotated[LogLevel, _one_of(LogLevel)] = "info"


class Settings(Table):
    """The whole file."""

    restore: RestoreTable = RestoreTable()
    restores: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")], NamedRestore] = {}
    service: ServiceTable = ServiceTable()
    policy: PolicyTable = PolicyTable()
    relax: RelaxTable = RelaxTable()
    mqtt: MqttTable = MqttTable()
    metrics: MetricsTable = MetricsTable()
    log: LogTable = LogTable()

    def named(self, name: str) -> NamedRestore | None:
        """``[restores.NAME]``; what it leaves out is as in ``[restore]``."""
        found = self.restores.get(name)
        if found is None:
            return None
        said = {field: getattr(found, field) for field in found.model_fields_set}
        return found.model_copy(update={**self.restore.model_dump(), **said})
