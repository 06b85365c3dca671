"""A local S3 server (moto) with a temper: answers 503, knows one key only, counts what is asked."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
from moto.backends import get_backend
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

KEY, BUCKET = "local-key", "bucket"
REFUSED = b"<Error><Code>InvalidAccessKeyId</Code><Message>The key is not known.</Message></Error>"
BUSY = b"<Error><Code>ServiceUnavailable</Code><Message>Please reduce.</Message></Error>"


class Store:
    """The WSGI application.

    Args:
        temper: share of answers that are 503.
    """

    def __init__(self, temper: float = 0.0) -> None:
        self.moto = DomainDispatcherApplication(create_backend_app)
        self.temper, self.draw = temper, random.Random(3)
        self.asked: Counter[str] = Counter()
        self.lock, self.url = threading.Lock(), ""

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        with self.lock:
            self.asked[environ["PATH_INFO"]] += 1
            busy = self.draw.random() < self.temper
        if f"Credential={KEY}/" not in environ.get("HTTP_AUTHORIZATION", ""):
            start("403 Forbidden", [("Content-Type", "application/xml")])
            return [REFUSED if environ["REQUEST_METHOD"] != "HEAD" else b""]
        if busy:
            start("503 Service Unavailable", [("Content-Type", "application/xml")])
            return [BUSY if environ["REQUEST_METHOD"] != "HEAD" else b""]
        return self.moto(environ, start)

    def environment(self, key: str = KEY) -> dict[str, str]:
        """What a process needs to find the server."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def upload(self, folder: Path, prefix: str = "set") -> str:
        """Put the files of a folder into the bucket; their address."""
        client = boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=KEY,
            aws_secret_access_key="secret",
            region_name="us-east-1",
        )
        client.create_bucket(Bucket=BUCKET)
        for file in sorted(folder.iterdir()):
            client.put_object(Bucket=BUCKET, Key=f"{prefix}/{file.name}", Body=file.read_bytes())
        client.close()
        return f"s3://{BUCKET}/{prefix}"


@contextmanager
def storing(temper: float = 0.0) -> Iterator[Store]:
    """A server in a thread, without any bucket."""
    store = Store()
    server = make_server("127.0.0.1", 0, store, threaded=True)
    server.daemon_threads = True  # type: ignore[attr-defined]
    store.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield store
    finally:
        server.shutdown()
        server.server_close()
        for backends in get_backend("s3").values():
            for backend in backends.values():
                backend.reset()
