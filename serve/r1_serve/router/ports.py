"""Listening sockets, alone or shared between processes."""

from __future__ import annotations

import socket

from r1_serve.errors import StartupError


def listen(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A bound socket for HTTP; ``shared`` with other processes of this router. Raises StartupError."""
    return _bind(host, port, "http", shared=shared)


def reserve(host: str, port: int, door: str) -> socket.socket:
    """Hold a port for processes that will share it; nothing is taken by this socket itself. 0 picks a free one. Raises
    StartupError where anybody else, even one who would share it, has the port."""
    with _bind(host, port, door) as found:
        number = int(found.getsockname()[1])
    return _bind(host, number, door, shared=True)


def taken(host: str, port: int, door: str) -> StartupError:
    if door == "fleet":
        return StartupError(f"cannot listen on {host}:{port}: end what uses the port, or choose others: R1_FLEET_PORT")
    return StartupError(
        f"cannot listen on {host}:{port}: end what uses the port, or choose another with --{door}-port "
        f"or R1_{door.upper()}_PORT (0 picks a free one)"
    )


def _bind(host: str, port: int, door: str, *, shared: bool = False) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        sock.bind((host, port))
    except OSError as e:
        sock.close()
        raise taken(host, port, door) from e
    return sock
