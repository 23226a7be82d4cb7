"""The Kafka connection: combinations that cannot work are refused naming the setting, and secrets are in the environment only."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import trustme

from queryloop.commands.config import masked, to_toml
from queryloop.settings import Settings
from streams.brokers.connection import KafkaConnection, asyncio_options, client_options, read_token
from streams.runtime.environment import to_environ
from streams.runtime.settings import SettingsError, load_settings
from streams.worker.settings import StreamsSettings

SECRET = "correct horse battery"
SCRAM = {"SECURITY_PROTOCOL": "SASL_SSL", "SASL_MECHANISM": "SCRAM-SHA-512", "SASL_USERNAME": "loop", "SASL_PASSWORD": SECRET}
TLS = {"SECURITY_PROTOCOL": "SSL"}


def load(**keys: str) -> Settings:
    return load_settings(Settings, environ={f"QUERYLOOP_KAFKA_{name}": value for name, value in keys.items()})


def refused(**keys: str) -> str:
    with pytest.raises(SettingsError) as caught:
        load(**{"BOOTSTRAP": "k:9093", **keys})
    assert SECRET not in str(caught.value)
    return str(caught.value)


def without(key: str) -> dict[str, str]:
    return {name: value for name, value in SCRAM.items() if name != key}


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"SASL_MECHANISM": "PLAIN"}, "kafka.sasl_mechanism is set, but kafka.security_protocol is PLAINTEXT"),
        ({"SSL_CHECK_HOSTNAME": "false"}, "kafka.ssl_check_hostname is set, but kafka.security_protocol is PLAINTEXT"),
        ({**TLS, "SASL_USERNAME": "x"}, "kafka.sasl_username is set, but kafka.security_protocol is SSL"),
        ({**SCRAM, "SECURITY_PROTOCOL": "SASL_PLAINTEXT", "SSL_CA_FILE": "ca.pem"}, "kafka.ssl_ca_file is set, but"),
        (without("SASL_MECHANISM"), "set kafka.sasl_mechanism too"),
        (without("SASL_USERNAME"), "set kafka.sasl_username too"),
        (without("SASL_PASSWORD"), "in the environment as QUERYLOOP_KAFKA_SASL_PASSWORD"),
        ({**SCRAM, "SASL_MECHANISM": "OAUTHBEARER"}, "set kafka.sasl_token_file too"),
        ({**SCRAM, "SASL_TOKEN_FILE": "t"}, "kafka.sasl_token_file is set, but kafka.sasl_mechanism SCRAM-SHA-512 does not"),
        ({**SCRAM, "SASL_MECHANISM": "GSSAPI"}, "kafka.sasl_mechanism = 'GSSAPI'"),
        ({**TLS, "SSL_KEY_FILE": "k.pem"}, "kafka.ssl_key_file is set without kafka.ssl_cert_file"),
        ({**TLS, "SSL_CA_FILE": "/nowhere/ca.pem"}, "kafka.ssl_ca_file = '/nowhere/ca.pem'"),
        ({**TLS, "SSL_CERT_FILE": "/nowhere/me.pem"}, "kafka.ssl_cert_file = '/nowhere/me.pem': there is no such file"),
        ({**SCRAM, "BOOTSTRAP": ""}, "kafka.security_protocol is SASL_SSL, but kafka.bootstrap is unset"),
    ],
)
def test_settings_that_cannot_work_are_refused_with_their_names(keys: dict[str, str], said: str) -> None:
    assert said in refused(**keys)


def write_client(folder: Path, password: str | None = None) -> dict[str, str]:
    """Write a certificate and its key, encrypted where there is a password; return the settings that name them."""
    from cryptography.hazmat.primitives import serialization as forms

    issued = trustme.CA().issue_cert("me@example.org")
    issued.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    key = forms.load_pem_private_key(issued.private_key_pem.bytes(), None)
    lock = forms.BestAvailableEncryption(password.encode()) if password else forms.NoEncryption()
    (folder / "key.pem").write_bytes(key.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, lock))
    return {**TLS, "SSL_CERT_FILE": str(folder / "cert.pem"), "SSL_KEY_FILE": str(folder / "key.pem")}


def test_a_key_has_to_belong_to_its_certificate_and_an_encrypted_one_needs_its_password(tmp_path: Path) -> None:
    keys = write_client(tmp_path, SECRET)
    assert "set QUERYLOOP_KAFKA_SSL_KEY_PASSWORD" in refused(**keys)
    assert "QUERYLOOP_KAFKA_SSL_KEY_PASSWORD is wrong" in refused(**keys, SSL_KEY_PASSWORD="wrong")
    load(BOOTSTRAP="k:9093", **keys, SSL_KEY_PASSWORD=SECRET)
    (tmp_path / "other").mkdir()
    other = write_client(tmp_path / "other")
    assert "cannot be used together" in refused(**{**keys, "SSL_KEY_FILE": other["SSL_KEY_FILE"]})


@pytest.mark.parametrize("key", ["sasl_password", "ssl_key_password"])
@pytest.mark.parametrize("root", [Settings, StreamsSettings])
def test_a_secret_in_a_file_is_refused_and_not_shown(tmp_path: Path, key: str, root: type) -> None:
    file = tmp_path / "queryloop.toml"
    file.write_text(f'[kafka]\n{key} = "{SECRET}"\n')
    with pytest.raises(SettingsError, match=f"kafka.{key} is a secret.*QUERYLOOP_KAFKA_{key.upper()}") as caught:
        load_settings(root, file, {})
    assert SECRET not in str(caught.value)


def test_a_secret_is_never_shown_and_reaches_child_processes() -> None:
    settings = load(BOOTSTRAP="k:9093", **SCRAM)
    tables = masked(settings)
    assert SECRET not in to_toml(tables) + json.dumps(tables) + repr(settings) + repr(client_options)
    assert load_settings(Settings, environ=to_environ(settings, {})) == settings


def test_both_libraries_get_the_same_options() -> None:
    connection = load(BOOTSTRAP="k:9093", **SCRAM).kafka
    for options in (client_options(connection), asyncio_options(connection)):
        assert options.pop("ssl_context").check_hostname
        assert options == {
            "bootstrap_servers": "k:9093",
            "security_protocol": "SASL_SSL",
            "sasl_mechanism": "SCRAM-SHA-512",
            "sasl_plain_username": "loop",
            "sasl_plain_password": SECRET,
        }
    assert client_options("k:9092") == asyncio_options(KafkaConnection(bootstrap="k:9092")) == {"bootstrap_servers": "k:9092"}


def test_a_login_keeps_the_libraries_from_logging_what_they_send(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("kafka", "aiokafka"):
        monkeypatch.setattr(logging.getLogger(name), "level", logging.DEBUG)
    client_options(load(BOOTSTRAP="k:9093", **SCRAM).kafka)
    assert [logging.getLogger(name).level for name in ("kafka", "aiokafka")] == [logging.INFO] * 2


def test_an_own_broker_is_plaintext_whatever_the_external_one_needs() -> None:
    kafka = load(BOOTSTRAP="k:9093", TOPIC="mine", **SCRAM).kafka.at_own_broker("127.0.0.1:1")
    assert (kafka.topic, client_options(kafka)) == ("mine", {"bootstrap_servers": "127.0.0.1:1"})


def test_a_token_is_read_anew_for_each_connection(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("first\n")
    keys: dict[str, Any] = {"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "OAUTHBEARER", "sasl_token_file": path}
    provider = client_options(KafkaConnection(bootstrap="k:9093", **keys))["sasl_oauth_token_provider"]
    assert provider.token() == "first"
    path.write_text("second\n")
    assert provider.token() == "second"
    path.unlink()
    with pytest.raises(OSError, match=r"kafka\.sasl_token_file"):
        read_token(path)
