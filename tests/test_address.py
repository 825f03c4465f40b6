"""Where a server listens: what is taken or unknown is named, with the way out."""

from __future__ import annotations

import socket

import pytest

from segue.address import listen, url


def test_a_free_port_is_listened_at_and_told() -> None:
    with listen("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            assert url("127.0.0.1", listening) == f"http://127.0.0.1:{port}"
            assert url("::1", listening) == f"http://[::1]:{port}"


def test_what_cannot_be_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            ValueError, match=rf"cannot listen at 127\.0\.0\.1, port {port}: .*another --port or --host"
        ):
            listen("127.0.0.1", port)
    with pytest.raises(ValueError, match=r"cannot listen at no\.such\.host\.invalid"):
        listen("no.such.host.invalid", 0)
