"""A bad line to a broker: it can stand still, be cut, or know no MQTT 5."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOOK_S = 0.05
_CONNECT_5 = b"\x00\x04MQTT\x05"


class Relay:
    """Passes bytes on between its own port and the broker's. ``still``: nothing is read any more; ``old``: MQTT 5 is refused;
    ``rude``: every connection is closed as soon as the broker has said yes."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.still = False
        self.old = False
        self.rude = False
        self.connections = 0
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._ending = False
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def cut(self) -> None:
        """End every connection."""
        for pair in self._pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Nothing of it is left."""
        self._ending = True
        self.cut()
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _accept(self) -> None:
        while not self._ending:
            if select.select([self._listener], [], [], _LOOK_S)[0]:
                client, _ = self._listener.accept()
                self.connections += 1
                broker = socket.create_connection(("127.0.0.1", self._to))
                self._pairs.append((client, broker))
                self._threads.append(threading.Thread(target=self._pass_on, args=(client, broker)))
                self._threads[-1].start()

    def _pass_on(self, client: socket.socket, broker: socket.socket) -> None:
        with client, broker, contextlib.suppress(OSError):
            while not self._ending:
                if self.still:
                    threading.Event().wait(_LOOK_S)
                    continue
                for ready in select.select([client, broker], [], [], _LOOK_S)[0]:
                    data = ready.recv(65536)
                    if not data:
                        return
                    if self.old and ready is client and _CONNECT_5 in data[:16]:
                        client.sendall(b"\x20\x02\x00\x01")
                        return
                    (broker if ready is client else client).sendall(data)
                    if self.rude and ready is broker:
                        return


@contextlib.contextmanager
def relay(port: int) -> Iterator[Relay]:
    """A line to that port while the block runs."""
    line = Relay(port)
    try:
        yield line
    finally:
        line.close()
