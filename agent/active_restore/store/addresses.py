"""Where a server was when its name could be looked up last.

The name server may be a service of this machine that waits for the very files which we are to restore: then its answer would
come after ours. So names are looked up while nothing is held, and remembered, over the death of an agent and a reboot, too.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import socket
import threading
import time
from typing import NamedTuple

_AGAIN_S = 5.0
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")


class AddressBook(NamedTuple):
    """``path`` is a file that remembers, ``known`` (name, address) what is known without one."""

    path: str = ""
    known: tuple[tuple[str, str], ...] = ()

    def read(self) -> tuple[tuple[str, str], ...]:
        """Each name with each of its addresses; nothing that is no address, whatever somebody wrote into the file."""
        found = list(self.known)
        with contextlib.suppress(OSError, ValueError, TypeError):
            with open(self.path, "rb") as file:
                found += [(str(name), str(ipaddress.ip_address(address))) for name, address in json.load(file)]
        return tuple(found)

    def of(self, name: str) -> tuple[str, ...]:
        """The addresses of a name."""
        return tuple(address for known, address in self.read() if known == name)

    def note(self, name: str, addresses: tuple[str, ...]) -> None:
        """Remember them in place of all others; where that cannot be done, all goes on without."""
        if not self.path or set(self.of(name)) == set(addresses):
            return
        fresh = f"{self.path}.new"
        with contextlib.suppress(OSError):
            with open(fresh, "w") as file:
                json.dump([[name, address] for address in addresses], file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(fresh, self.path)


class Name:
    """A name and its addresses. May be used by several threads."""

    def __init__(self, host: str, addresses: tuple[str, ...] = ()) -> None:
        """``host`` may be written in any script. A first look-up begins at once."""
        self.host = host
        self.addresses = addresses
        self.answered = False
        """Whether the last look-up has ended and found it."""
        # Now: the codec is a module that might be a placeholder later.
        self._asked = host.encode("idna")
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._began = 0.0
        self._ask()

    def look_up(self, patience_s: float) -> bool:
        """Whether it can be looked up now. A name server that says nothing is left to a thread of its own."""
        with self._lock:
            if self._ended.is_set():
                self._ask()
        return self._ended.wait(patience_s) and self.answered

    def is_back(self) -> bool:
        """Whether it can be looked up again, without waiting: every few seconds somebody tries."""
        with self._lock:
            if not self.answered and self._ended.is_set() and time.monotonic() > self._began + _AGAIN_S:
                self._ask()
        return self.answered

    def _ask(self) -> None:
        self._ended.clear()
        self.answered = False
        self._began = time.monotonic()
        threading.Thread(target=self._look, name="name", daemon=True).start()

    def _look(self) -> None:
        found: list[str] = []
        with contextlib.suppress(OSError):
            for *_, place in socket.getaddrinfo(self._asked, None, type=socket.SOCK_STREAM):
                found.append(str(place[0]))
        if found:
            self.addresses = tuple(dict.fromkeys(found))
        self.answered = bool(found)
        self._ended.set()


def is_looked_up(host: str) -> bool:
    """Whether we look this host up ourselves: an address is not, and where there is a proxy, it looks up for us."""
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(host)
        return False
    return bool(host) and not any(os.environ.get(name) or os.environ.get(name.upper()) for name in _PROXIES)
