"""A web server for a data set, good or bad."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal

Shards = Literal["good", "missing", "silent", "wrong", "short", "slow", "endless", "stalled"]
"""How files are answered: as they are, with 404, never, with other bytes, with half of what is promised, a byte every
0.1 s, without end, or half of a whole file and then nothing more."""


class _Server(BaseHTTPRequestHandler):
    def __init__(
        self, root: Path, cut: int, ranges: bool, shards: Shards, of: str, log: list[str], *args: object
    ) -> None:
        self.root, self.cut, self.ranges, self.shards, self.of, self.log = root, cut, ranges, shards, of, log
        super().__init__(*args)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        path = self.root / self.path.lstrip("/")
        self.log.append(self.path)
        how = self.shards if path.match(self.of) else "good"
        if not path.is_file() or how == "missing":
            self.send_error(404)
            return
        if how == "silent":
            time.sleep(120)
            return
        data = path.read_bytes()
        etag, content_range = f'"{zlib.crc32(data):08x}"', ""
        wanted = self.headers.get("Range") if self.headers.get("If-Range", etag) == etag else None
        if wanted and self.ranges:
            first, last = wanted.removeprefix("bytes=").split("-")
            content_range = f"bytes {first}-{last or len(data) - 1}/{len(data)}"
            data = data[int(first) : int(last or len(data)) + 1]
        if how == "wrong":
            data = os.urandom(len(data))
        with contextlib.suppress(OSError):  # the client may be gone
            self.send_response(206 if wanted and self.ranges else 200)
            self.send_header("ETag", etag)
            if content_range:
                self.send_header("Content-Range", content_range)
            if how != "endless":
                self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            while how == "endless":
                self.wfile.write(bytes(1 << 20))
            for byte in data if how == "slow" else b"":
                self.wfile.write(bytes([byte]))
                time.sleep(0.1)
            if how == "stalled" and not content_range:
                self.wfile.write(data[: len(data) // 2])
                self.wfile.flush()
                time.sleep(120)
            if how == "short" or (self.cut and len(self.log) % self.cut == 0):
                self.wfile.write(data[: len(data) // 2])
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            if how != "slow":
                self.wfile.write(data)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving(
    root: Path, cut: int = 0, ranges: bool = True, shards: Shards = "good", of: str = "*.tar"
) -> Iterator[tuple[str, list[str]]]:
    """Serves a folder by ranges; gives its URL and the paths that were asked for.

    Args:
        cut: every so many requests one breaks off in the middle of its answer; 0 = none.
        ranges: whether ranges are understood.
        shards: how the files that match `of` are answered.
    """
    log: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Server, root, cut, ranges, shards, of, log))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", log
    finally:
        server.shutdown()
        thread.join()
        server.socket.close()
