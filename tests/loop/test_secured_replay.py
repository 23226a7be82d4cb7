"""Commands on settings of a secured cluster: none speaks plaintext to it, which would time out and blame nothing."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Thread

import pytest
import trustme

ROOT = Path(__file__).resolve().parents[3]


def serve_tls(listener: socket.socket, context: ssl.SSLContext) -> None:
    """Shake hands with whoever speaks TLS and trusts the certificate, until the listener is closed."""
    with suppress(OSError):
        while True:
            client, _ = listener.accept()
            client.settimeout(5)
            with suppress(OSError), context.wrap_socket(client, server_side=True) as secured:
                secured.recv(1)


@pytest.fixture
def environ(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The settings of a cluster with TLS whose certificate another authority has signed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    trusted = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(trusted)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = Thread(target=serve_tls, args=(listener, context), daemon=True)
        thread.start()
        yield {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "QUERYLOOP_DATA_DIR": str(tmp_path / "data"),
            "QUERYLOOP_KAFKA_BOOTSTRAP": f"127.0.0.1:{listener.getsockname()[1]}",
            "QUERYLOOP_KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
            "QUERYLOOP_KAFKA_SASL_MECHANISM": "SCRAM-SHA-512",
            "QUERYLOOP_KAFKA_SASL_USERNAME": "alice",
            "QUERYLOOP_KAFKA_SASL_PASSWORD": "keep-me-secret",
            "QUERYLOOP_KAFKA_SSL_CA_FILE": str(trusted),
        }
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(10)


def test_a_replay_asks_a_secured_cluster_for_its_topic_over_tls(environ: dict[str, str]) -> None:
    asks = (
        "from argparse import Namespace; from queryloop.commands.replay import _find_running; "
        "from queryloop.settings import read_settings; settings = read_settings(Namespace(config=None)); "
        "print(_find_running(settings, settings.kafka.bootstrap))"
    )
    done = subprocess.run([sys.executable, "-c", asks], env=environ, capture_output=True, text=True, timeout=90, check=False)
    assert "signed by an authority that is not trusted here" in done.stdout, done.stdout + done.stderr
    assert "keep-me-secret" not in done.stdout + done.stderr
