"""Where a server or a page is to be found."""

from __future__ import annotations

import socket

LOCAL = ("127.0.0.1", "localhost", "::1")


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; ValueError where it cannot."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (while")[0].lower()
        raise ValueError(f"cannot listen at {host}, port {port}: {reason}; give another --port or --host") from None


def url(host: str, listening: socket.socket) -> str:
    """What a browser is to open."""
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{listening.getsockname()[1]}"
