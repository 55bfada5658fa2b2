"""Listings of a restic REST server: plain JSON over HTTP, which obstore has no call for.

Source: restic ``doc/REST_backend.rst``.
"""

from __future__ import annotations

import http.client
import ssl
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

import msgspec

from active_restore.errors import SourceUnavailable
from active_restore.store.base import AccessDenied, Entry

if TYPE_CHECKING:
    from active_restore.store.detour import Detour

_VERSION_2 = "application/vnd.x.restic.rest.v2"
_TIMEOUT_S = 60
_HTTPS = 443
# A million packs take about 100 MB.
_MAX_LISTING_BYTES = 1 << 30


class _Listed(msgspec.Struct):
    name: str
    size: int = -1


class RestListing:
    """Lists folders of the repository at ``address``. ``authority`` is a file of CA certificates, or empty."""

    def __init__(self, url: str, address: str, headers: dict[str, str], authority: str, detour: Detour | None = None) -> None:
        self._url = url
        self._detour = detour
        self._parts = urlsplit(address)
        self._headers = headers | {"Accept": _VERSION_2, "User-Agent": "active-restore"}
        self._tls = ssl.create_default_context(cafile=authority or None) if self._parts.scheme == "https" else None

    def entries(self, folder: str) -> list[Entry]:
        """All objects of a folder. Raises ``SourceUnavailable``, ``AccessDenied``."""
        status, text = self._request(f"{quote(unquote(self._parts.path.rstrip('/')))}/{folder}/")
        if status == 404:
            return []
        if status in (401, 403):
            raise AccessDenied(f"{self._url} refuses access to {folder}", "check user and password of the REST server")
        if status != 200:
            raise SourceUnavailable(f"{self._url} answers {status} to a listing of {folder}", "check the server's log")
        return self._parsed(text)

    def _request(self, path: str) -> tuple[int, bytes]:
        link, headers = self._link(), self._headers
        if self._detour is not None and self._tls is None:
            path = f"{self._parts.scheme}://{self._parts.netloc}{path}"
            headers = headers | {"Proxy-Authorization": self._detour.authorization}
        try:
            link.request("GET", path, headers=headers)
            answer = link.getresponse()
            return answer.status, answer.read(_MAX_LISTING_BYTES)
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            bad = isinstance(error, ssl.SSLCertVerificationError)
            hint = "check its certificate; RESTIC_CACERT names the authority" if bad else "check network and server"
            raise SourceUnavailable(f"{self._url} cannot be reached: {reason}", hint) from error
        finally:
            link.close()

    def _link(self) -> http.client.HTTPConnection:
        host, port = self._parts.hostname or "", self._parts.port
        place = (host, port) if self._detour is None else self._detour.address
        if self._tls is None:
            return http.client.HTTPConnection(*place, timeout=_TIMEOUT_S)
        link = http.client.HTTPSConnection(*place, timeout=_TIMEOUT_S, context=self._tls)
        if self._detour is not None:
            link.set_tunnel(host, port or _HTTPS, {"Proxy-Authorization": self._detour.authorization})
        return link

    def _parsed(self, text: bytes) -> list[Entry]:
        try:
            listed = msgspec.json.decode(text, type=list[_Listed | str] | None) or []
        except (ValueError, RecursionError) as error:
            raise SourceUnavailable(f"{self._url} is no REST server of restic", "check the URL") from error
        return [Entry(one, -1) if isinstance(one, str) else Entry(one.name, one.size) for one in listed]
