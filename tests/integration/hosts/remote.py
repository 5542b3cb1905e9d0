"""A remote shell over TCP: what a launcher needs of ssh, without keys, for hosts that live for one test.

`remote.py --serve` answers on a host; `remote.py [ssh options] HOST COMMAND ...` runs a command there. Where ssh has a
habit that decides how a job ends, this has the same: the words are joined by blanks for the remote shell, which starts
with a bare environment in the home folder; a lost connection closes the command's pipes and kills nothing; a silent
peer is noticed only with `-o ServerAliveInterval=SECONDS`; exit code 255 is a failed connection.

A message is one byte of kind, four of length, then the bytes.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import threading
from contextlib import suppress
from typing import IO

PORT = 22
COMMAND, STDIN, STDOUT, STDERR, EXIT = range(5)
HEADER = struct.Struct("!BI")
# Flags of ssh with a word behind them.
TAKE_A_VALUE = "BbcDEeFIiJLlmOopQRSWw"
# As sshd gives: nothing of the environment in which the hosts were made.
BARE = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "SHELL": "/bin/bash"}


def send(connection: socket.socket, lock: threading.Lock, kind: int, data: bytes) -> None:
    with lock:
        connection.sendall(HEADER.pack(kind, len(data)) + data)


def receive(connection: socket.socket) -> tuple[int, bytes] | None:
    """One message; None when the connection has ended."""
    header = read_exactly(connection, HEADER.size)
    if header is None:
        return None
    kind, length = HEADER.unpack(header)
    data = read_exactly(connection, length)
    return None if data is None else (kind, data)


def read_exactly(connection: socket.socket, length: int) -> bytes | None:
    data = b""
    while len(data) < length:
        try:
            piece = connection.recv(length - len(data))
        except OSError:
            return None
        if not piece:
            return None
        data += piece
    return data


# ------------------------------------------------------------------------------------------------- on the remote host


def serve() -> None:
    """Answer until killed, every connection in a thread of its own."""
    with socket.create_server(("", PORT), backlog=64) as server:
        print("serving", flush=True)
        while True:
            connection, _ = server.accept()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            threading.Thread(target=answer, args=(connection,), daemon=True).start()


def answer(connection: socket.socket) -> None:
    """One command: its input and output go over the connection, at the end its exit code."""
    first = receive(connection)
    if first is None or first[0] != COMMAND:
        connection.close()
        return
    home = os.environ.get("HOME", "/")
    pipe = subprocess.PIPE
    child = subprocess.Popen(
        ["/bin/bash", "-c", first[1].decode()],
        cwd=home, env=BARE | {"HOME": home}, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True, bufsize=0,
    )  # fmt: skip
    assert child.stdin
    assert child.stdout
    assert child.stderr
    lock = threading.Lock()
    threads = [
        threading.Thread(target=pump, args=(child.stdout, connection, lock, STDOUT), daemon=True),
        threading.Thread(target=pump, args=(child.stderr, connection, lock, STDERR), daemon=True),
    ]
    threading.Thread(target=feed, args=(connection, child.stdin), daemon=True).start()
    for thread in threads:
        thread.start()
    # The session lasts as long as somebody holds the output: a daemon that closed it lets the client go.
    for thread in threads:
        thread.join()
    code = child.wait()
    with suppress(OSError):
        send(connection, lock, EXIT, str(code if code >= 0 else 128 - code).encode())
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


def pump(source: IO[bytes], connection: socket.socket, lock: threading.Lock, kind: int) -> None:
    """Output of the command to the client; with the client gone, the command's next write meets a closed pipe."""
    with suppress(OSError):
        while data := os.read(source.fileno(), 65536):
            send(connection, lock, kind, data)
    source.close()


def feed(connection: socket.socket, stdin: IO[bytes]) -> None:
    """Input from the client to the command; an empty message is its end."""
    while (message := receive(connection)) is not None:
        if not message[1]:
            break
        with suppress(OSError):
            stdin.write(message[1])
    with suppress(OSError):
        stdin.close()


# --------------------------------------------------------------------------------------------------- on the near host


def parse(words: list[str]) -> tuple[dict[str, str], str, list[str]]:
    """Ssh's command line: its `-o` options, the host without its user, and the command's words."""
    options: dict[str, str] = {}
    host = ""
    left = list(words)
    while left:
        if left[0].startswith("-"):
            flag = left.pop(0)
            if flag[1] in TAKE_A_VALUE:
                value = flag[2:] or left.pop(0)
                if flag[1] == "o":
                    name, _, setting = value.partition("=")
                    options[name.lower()] = setting
        elif not host:
            # Options may also stand behind the host.
            host = left.pop(0).rpartition("@")[2]
        else:
            break
    if not host or not left:
        sys.exit("usage: remote.py [options] HOST COMMAND ...")
    return options, host, left


def connect(host: str, options: dict[str, str]) -> socket.socket:
    connection = socket.create_connection((host, PORT), float(options.get("connecttimeout", 30)))
    connection.settimeout(None)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    interval, count = int(options.get("serveraliveinterval", 0)), int(options.get("serveralivecountmax", 3))
    if interval:
        for name, value in (("IDLE", interval), ("INTVL", interval), ("CNT", count)):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, f"TCP_KEEP{name}"), value)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * interval * count)
    return connection


def forward_input(connection: socket.socket, lock: threading.Lock) -> None:
    with suppress(OSError):
        while data := os.read(0, 65536):
            send(connection, lock, STDIN, data)
        send(connection, lock, STDIN, b"")


def main(words: list[str]) -> int:
    if words == ["--serve"]:
        serve()
    options, host, command = parse(words)
    try:
        connection = connect(host, options)
    except OSError as error:
        print(f"ssh: connect to host {host} port {PORT}: {error}", file=sys.stderr)
        return 255
    lock = threading.Lock()
    send(connection, lock, COMMAND, " ".join(command).encode())
    threading.Thread(target=forward_input, args=(connection, lock), daemon=True).start()
    while (message := receive(connection)) is not None:
        kind, data = message
        if kind == EXIT:
            return int(data)
        stream = sys.stdout.buffer if kind == STDOUT else sys.stderr.buffer
        stream.write(data)
        stream.flush()
    print(f"Connection to {host} closed by remote host.", file=sys.stderr)
    return 255


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    # not sys.exit: a thread may be waiting for input that never comes
    os._exit(code)
