"""Restic's spellings of repositories."""

from __future__ import annotations

import os

import pytest

from active_restore.errors import UsageError
from active_restore.store import location
from active_restore.store.local import LocalStore


@pytest.mark.parametrize(
    ("spec", "url"),
    [
        ("/srv/repo", "/srv/repo"),
        ("local:/srv/repo/", "/srv/repo"),
        ("local:rel", os.path.abspath("rel")),
        ("with:colon", os.path.abspath("with:colon")),
        ("s3:https://host/bucket/prefix/", "s3:https://host/bucket/prefix"),
        ("s3:http://host:9000/bucket", "s3:http://host:9000/bucket"),
        ("s3:host/bucket/a/b", "s3:https://host/bucket/a/b"),
        ("s3://host/bucket", "s3:https://host/bucket"),
        ("rest:http://host:8000/repo/", "rest:http://host:8000/repo"),
        ("rest:https://user:pass@host/", "rest:https://host"),
        ("rest:http://[::1]:8000/x", "rest:http://[::1]:8000/x"),
    ],
)
def test_spelling(spec: str, url: str) -> None:
    assert location.parse(spec, {}).url == url


@pytest.mark.parametrize(
    "spec",
    ["", "local:", "sftp:host:/x", "b2:bucket:x", "rclone:a:b", "gs:bucket:/", "azure:c:/", "ftp://host/x", "s3:https://host",
     "s3:https://key:secret@host/bucket", "rest:host:8000/x", "rest:ftp://host/x", "rest:http://host:port/x", "a\0b"],
)  # fmt: skip
def test_what_is_not_supported_has_a_hint(spec: str) -> None:
    with pytest.raises(UsageError) as caught:
        location.parse(spec, {})
    assert caught.value.hint
    assert "secret" not in str(caught.value)


def test_only_what_stores_need_goes_into_the_recipe() -> None:
    env = {"AWS_ACCESS_KEY_ID": "a", "RESTIC_PASSWORD": "no", "HOME": "/root"}
    assert dict(location.parse("s3:host/bucket", env).env) == {"AWS_ACCESS_KEY_ID": "a"}
    assert location.parse("/srv/repo", env).env == ()
    assert isinstance(location.parse("/srv/repo", env).open(), LocalStore)


def test_password_of_a_rest_server_may_hold_anything() -> None:
    place = location.parse("rest:http://us%40er:p%3Aa%2Fss@host/repo", {})
    assert dict(place.env) == {"RESTIC_REST_USERNAME": "us@er", "RESTIC_REST_PASSWORD": "p:a/ss"}
