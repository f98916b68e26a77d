"""Clients by hand, byte for byte: what no library would send."""

from __future__ import annotations

import socket
import struct

HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


def connected(port: int, *, handshake: bool = True, timeout_s: float = 30.0) -> socket.socket:
    """A socket that does nothing by itself, with the metadata still to be read."""
    stranger = socket.create_connection(("127.0.0.1", port), timeout_s)
    if handshake:
        stranger.sendall(HANDSHAKE)
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):  # a byte at a time, so that no frame is lost
            answer += stranger.recv(1)
        assert answer.startswith(b"HTTP/1.1 101 ")
    return stranger


def frame(opcode: int, payload: bytes = b"", *, is_final: bool = True) -> bytes:
    """A client's frame, masked with zeros (RFC 6455, section 5.2)."""
    size = len(payload)
    head = bytes([opcode | (0x80 if is_final else 0)])
    if size < 126:
        head += bytes([0x80 | size])
    elif size < 65536:
        head += b"\xfe" + struct.pack(">H", size)
    else:
        head += b"\xff" + struct.pack(">Q", size)
    return head + bytes(4) + payload


def is_closed(stranger: socket.socket) -> bool:
    """Wait until the other side ends it, whatever it says before."""
    try:
        while stranger.recv(65536):
            pass
    except ConnectionError:
        pass
    except TimeoutError:
        return False
    return True
