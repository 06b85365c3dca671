"""A small HTTP server with a temper: answers 500, stalls, cuts connections, ignores ranges; and an
nginx of its own."""

from __future__ import annotations

import random
import shutil
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FAULTS = ("500", "503", "stall", "cut", "short", "whole", "fine", "fine")


class Server(ThreadingHTTPServer):
    """Serves a folder with ranges and versions, as nginx does.

    Args:
        folder: of the files. temper: share of answers that go wrong, drawn by a generator of its
            own.
    """

    daemon_threads = True

    def __init__(self, folder: Path, temper: float = 0.0) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.temper, self.draw = folder, temper, random.Random(5)
        self.asked: Counter[str] = Counter()
        self.done: Counter[str] = Counter()  # what went wrong, by kind
        self.ranges = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is no news."""


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        """The file, or what the temper makes of it."""
        server, path = self.server, self.server.folder / self.path.partition("?")[0].lstrip("/")
        with server.lock:
            server.asked[path.name] += 1
            fault = server.draw.choice(FAULTS) if server.draw.random() < server.temper else "fine"
            server.done[fault] += 1
        self.close_connection = True
        if not path.is_file() or fault in ("500", "503"):
            self.send_error(int(fault) if path.is_file() else 404)
            return
        content, version = path.read_bytes(), f'"{path.stat().st_mtime_ns}"'
        begin = self._begin(version) if fault != "whole" else 0
        self.send_response(206 if begin else 200)
        self.send_header("ETag", version)
        self.send_header("Content-Length", str(len(content) - begin))
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        rest = content[begin:]
        part = rest if fault in ("fine", "whole") else rest[: server.draw.randrange(len(rest))]
        self.wfile.write(part)
        if fault == "stall":
            time.sleep(1.5)
        elif fault == "cut":
            self.connection.shutdown(socket.SHUT_RDWR)

    def _begin(self, version: str) -> int:
        asked = self.headers["Range"]
        if asked is None or self.headers["If-Range"] != version:
            return 0
        self.server.ranges += 1
        return int(asked.removeprefix("bytes=").removesuffix("-"))


@contextmanager
def serving(folder: Path, temper: float = 0.0) -> Iterator[Server]:
    """A server in a thread."""
    server = Server(folder, temper)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


NGINX = """
daemon off; worker_processes 1; pid {prefix}/pid; error_log {prefix}/error.log;
events {{ worker_connections 64; }}
http {{
  access_log {prefix}/access.log; client_body_temp_path {prefix}/b; proxy_temp_path {prefix}/p;
  fastcgi_temp_path {prefix}/f; uwsgi_temp_path {prefix}/u; scgi_temp_path {prefix}/s;
  split_clients "$request_id" $mood {{ 20% broken; 20% slow; * fine; }}
  server {{
    listen 127.0.0.1:{port}; root {folder};
    location / {{ error_page 418 = @broken; error_page 419 = @slow;
      if ($mood = broken) {{ return 418; }} if ($mood = slow) {{ return 419; }} }}
    location @broken {{ return 500; }}
    location @slow {{ limit_rate 20k; }}
  }}
}}
"""


@contextmanager
def nginx(folder: Path, prefix: Path) -> Iterator[str]:
    """A real nginx that answers a fifth of all requests with 500 and a fifth at 20 kB/s; yields its
    address."""
    program = shutil.which("nginx") or "/usr/sbin/nginx"
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    prefix.mkdir()
    (prefix / "nginx.conf").write_text(NGINX.format(prefix=prefix, folder=folder, port=port))
    process = subprocess.Popen(
        [program, "-p", str(prefix), "-c", str(prefix / "nginx.conf")], stderr=subprocess.PIPE
    )
    try:
        for _ in range(100):
            with socket.socket() as s:
                if s.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()
