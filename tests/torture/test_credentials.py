"""Credentials that end in the middle of a restore: tasks wait, and go on when somebody resumes with new ones."""

from __future__ import annotations

import json
import signal
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import obstore
from obstore.store import S3Store

from tests.kernel.tasks import Task, read
from tests.kernel.waiting import wait_until
from tests.store import servers
from tests.store.conftest import make_bucket
from tests.torture.test_bad_sources import Remote

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.kernel.rig import Rig


def ask(url: str, **words: str) -> ElementTree.Element:
    """A request to the IAM of moto's server, which takes it unsigned."""
    # A signature's scope tells moto which service is meant; nobody checks the rest of it.
    scope = "AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/iam/aws4_request, SignedHeaders=host, Signature=x"
    data = urllib.parse.urlencode({"Version": "2010-05-08", **words}).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data, {"Authorization": scope})) as answer:
        return ElementTree.fromstring(answer.read())


class Bucket:
    """A repository in a bucket whose server looks at who asks: a user with one access key at a time."""

    def __init__(self, url: str, repository: Path) -> None:
        self._url = url
        make_bucket(url, "backups")
        objects = S3Store(
            "backups",
            endpoint=url,
            client_options={"allow_http": True},
            access_key_id="testing",
            secret_access_key="testing",
            region="us-east-1",
        )
        for path in sorted(path for path in repository.rglob("*") if path.is_file()):
            obstore.put(objects, f"repo/{path.relative_to(repository)}", path.read_bytes())
        ask(url, Action="CreateUser", UserName="reader")
        statement = {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
        ask(url, Action="PutUserPolicy", UserName="reader", PolicyName="all", PolicyDocument=policy)
        self._key = ""

    def renew(self) -> dict[str, str]:
        """Another key; the one before is worth nothing any more."""
        self._check(who=False)
        if self._key:
            ask(self._url, Action="DeleteAccessKey", UserName="reader", AccessKeyId=self._key)
        made = ask(self._url, Action="CreateAccessKey", UserName="reader")
        found = {element.tag.rpartition("}")[2]: element.text or "" for element in made.iter()}
        self._key = found["AccessKeyId"]
        self._check(who=True)
        return {
            "AWS_ACCESS_KEY_ID": self._key,
            "AWS_SECRET_ACCESS_KEY": found["SecretAccessKey"],
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def _check(self, *, who: bool) -> None:
        data = b"0" if who else b"1000000000"
        with urllib.request.urlopen(
            urllib.request.Request(f"{self._url}/moto-api/reset-auth", data, {"Content-Type": "text/plain"})
        ):
            pass


def wait_and_go_on(
    rig: Rig, target: Path, files: dict[str, bytes], end: Callable[[], object], renew: Callable[[], object]
) -> None:
    """A restore whose credentials ``end``; who waits is told of, and served after ``renew`` and resume."""
    command = rig.restore(target, "--limit", "1")
    end()
    with Task("cat", target / "f15") as task:
        task.held()
        with rig.control(target) as client:
            wait_until(lambda: client.status().source_unreachable_s > 0, "it tells that it cannot get anything")
            assert [wait.path for wait in client.status().waiting] == [b"f15"]
        command.signal(signal.SIGINT)
        code, said = command.end()
        assert code == 130, said
        task.held()
        renew()
        again = rig.resume(target)
        assert task.output() == files["f15"]
    rig.finish(again, target)
    for name, content in files.items():
        assert read(target / name) == content
    rig.assert_clean(target)


def test_access_key_of_s3(rig: Rig, ext4_target: Path) -> None:
    remote = Remote(rig.place / "server", rig)
    remote.stop()
    with servers.s3_server() as url:
        bucket = Bucket(url, rig.place / "server/repo")
        rig.source = f"restic:s3:{url}/backups/repo"
        rig.env |= bucket.renew()
        fresh: dict[str, str] = {}
        wait_and_go_on(rig, ext4_target, remote.files, lambda: fresh.update(bucket.renew()), lambda: rig.env.update(fresh))


def test_password_of_a_rest_server(rig: Rig, ext4_target: Path) -> None:
    remote = Remote(rig.place / "server", rig)
    try:
        rig.source = f"restic:rest:http://{remote.server.address}/repo/"
        rig.env |= {"RESTIC_REST_USERNAME": servers.USER, "RESTIC_REST_PASSWORD": servers.PASSWORD}

        def change() -> None:
            remote.server.password = "another"

        wait_and_go_on(rig, ext4_target, remote.files, change, lambda: rig.env.update({"RESTIC_REST_PASSWORD": "another"}))
    finally:
        remote.stop()
