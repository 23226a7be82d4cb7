"""How clients reach a Kafka cluster and who they are there: the settings, and the options of each client library.

Every client of ours takes its options from here, so that a listener that one of them reaches is reached by all.
"""

from __future__ import annotations

import logging
import re
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, Field, JsonValue, SecretStr, model_validator

from streams.runtime.settings import ENVIRONMENT_ONLY

if TYPE_CHECKING:
    from kafka.net.sasl.oauth import AbstractTokenProvider

SecurityProtocol = Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]
Mechanism = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"]
ADDRESS = re.compile(r"\s*(\[[0-9A-Fa-f:.%\w]+\]|[^\s:/\[\],]+):(?P<port>\d{1,5})\s*")
SASL_KEYS = ("sasl_mechanism", "sasl_username", "sasl_password", "sasl_token_file")
TLS_KEYS = ("ssl_ca_file", "ssl_cert_file", "ssl_key_file", "ssl_key_password")
FROM_ENVIRONMENT: dict[str, JsonValue] = {ENVIRONMENT_ONLY: True}
"""Marks a secret that the settings loader refuses in a file."""


class KafkaConnection(BaseModel, frozen=True, extra="forbid"):
    """Where a Kafka cluster is, and how a client proves to it who it is."""

    bootstrap: str | None = Field(default=None, min_length=1, description="host:port of an external broker; overrides `broker`")
    security_protocol: SecurityProtocol = Field(
        default="PLAINTEXT", description="how clients speak to an external broker: TLS (SSL), a login (SASL), or both"
    )
    sasl_mechanism: Mechanism | None = Field(default=None, description="how clients log in, with a SASL protocol")
    sasl_username: str | None = Field(default=None, min_length=1, description="user of PLAIN and SCRAM")
    sasl_password: SecretStr | None = Field(
        default=None, min_length=1, description="their password, from the environment only", json_schema_extra=FROM_ENVIRONMENT
    )
    sasl_token_file: Path | None = Field(
        default=None, description="file with the token of OAUTHBEARER, read for each connection: whoever writes it renews it"
    )
    ssl_ca_file: Path | None = Field(
        default=None, description="PEM file of the authorities that sign brokers' certificates; unset: the system's"
    )
    ssl_cert_file: Path | None = Field(default=None, description="PEM file of the client's certificate, for mutual TLS")
    ssl_key_file: Path | None = Field(default=None, description="PEM file of its private key; unset: it is in ssl_cert_file")
    ssl_key_password: SecretStr | None = Field(
        default=None,
        min_length=1,
        description="password of an encrypted private key, from the environment only",
        json_schema_extra=FROM_ENVIRONMENT,
    )
    ssl_check_hostname: bool = Field(
        default=True, description="whether a broker's certificate must be for the name it is reached by"
    )

    @property
    def uses_sasl(self) -> bool:
        """Whether clients log in."""
        return self.security_protocol.startswith("SASL_")

    @property
    def uses_tls(self) -> bool:
        """Whether connections are encrypted."""
        return self.security_protocol.endswith("SSL")

    def at(self, bootstrap: str) -> Self:
        """Return these settings for another address of the same cluster."""
        return self.model_copy(update={"bootstrap": bootstrap})

    def at_own_broker(self, bootstrap: str) -> Self:
        """Return these settings for a broker that this process started: plaintext, whatever the external one needs."""
        secured = set(KafkaConnection.model_fields) - {"bootstrap"}
        return self.at(bootstrap).model_copy(update={name: KafkaConnection.model_fields[name].default for name in secured})

    @model_validator(mode="after")
    def _refuse_impossible(self) -> Self:
        for problem in (_sasl_problem(self), _tls_problem(self)):
            if problem:
                raise ValueError(problem)
        if self.security_protocol != "PLAINTEXT" and self.bootstrap is None:
            raise ValueError(
                f"kafka.security_protocol is {self.security_protocol}, but kafka.bootstrap is unset: "
                "brokers that Queryloop starts itself speak PLAINTEXT on loopback only"
            )
        if self.uses_tls:
            make_ssl_context(self)
        return self


Address = str | KafkaConnection
"""Where clients connect to: settings, or host:port of a plaintext listener."""


def _sasl_problem(connection: KafkaConnection) -> str | None:
    found = [key for key in SASL_KEYS if getattr(connection, key) is not None]
    if not connection.uses_sasl:
        return _superfluous(found[0], connection, "SASL_SSL or SASL_PLAINTEXT") if found else None
    if connection.sasl_mechanism is None:
        return f"kafka.security_protocol is {connection.security_protocol}: set kafka.sasl_mechanism too"
    by_token = connection.sasl_mechanism == "OAUTHBEARER"
    needed = ("sasl_token_file",) if by_token else ("sasl_username", "sasl_password")
    for key in needed:
        if key not in found:
            where = " in the environment as QUERYLOOP_KAFKA_SASL_PASSWORD" if key == "sasl_password" else ""
            return f"kafka.sasl_mechanism is {connection.sasl_mechanism}: set kafka.{key} too{where}"
    for key in found:
        if key not in (*needed, "sasl_mechanism"):
            return f"kafka.{key} is set, but kafka.sasl_mechanism {connection.sasl_mechanism} does not use it: unset one of them"
    return None


def _tls_problem(connection: KafkaConnection) -> str | None:
    found = [key for key in TLS_KEYS if getattr(connection, key) is not None]
    if not connection.uses_tls:
        changed = found or ([] if connection.ssl_check_hostname else ["ssl_check_hostname"])
        return _superfluous(changed[0], connection, "SSL or SASL_SSL") if changed else None
    for key in ("ssl_key_file", "ssl_key_password"):
        if key in found and "ssl_cert_file" not in found:
            return f"kafka.{key} is set without kafka.ssl_cert_file, the certificate that the key belongs to"
    return None


def _superfluous(key: str, connection: KafkaConnection, wanted: str) -> str:
    return (
        f"kafka.{key} is set, but kafka.security_protocol is {connection.security_protocol}, which does not use it: "
        f"set kafka.security_protocol to {wanted}, or unset kafka.{key}"
    )


def make_ssl_context(connection: KafkaConnection) -> ssl.SSLContext:
    """Return the TLS context of a client. Raises ValueError naming the setting whose file cannot be used."""
    try:
        context = ssl.create_default_context(cafile=connection.ssl_ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ValueError(
            f"kafka.ssl_ca_file = {str(connection.ssl_ca_file)!r}: not a PEM file of certificates: {error}"
        ) from None
    context.check_hostname = connection.ssl_check_hostname
    if connection.ssl_cert_file is not None:
        _load_certificate(context, connection, connection.ssl_cert_file)
    return context


def _load_certificate(context: ssl.SSLContext, connection: KafkaConnection, certificate: Path) -> None:
    password = connection.ssl_key_password

    def give_password() -> str:  # OpenSSL calls it for an encrypted key; without it, it would ask on the terminal
        if password is None:
            raise ValueError("kafka.ssl_key_file is encrypted: set QUERYLOOP_KAFKA_SSL_KEY_PASSWORD")
        return password.get_secret_value()

    key = connection.ssl_key_file or certificate
    for name, path in (("ssl_cert_file", certificate), ("ssl_key_file", key)):
        if not path.is_file():
            raise ValueError(f"kafka.{name} = {str(path)!r}: there is no such file")
    try:
        context.load_cert_chain(certificate, key, give_password)
    except (OSError, ssl.SSLError) as error:
        raise ValueError(
            f"kafka.ssl_cert_file = {str(certificate)!r} and kafka.ssl_key_file = {str(key)!r} cannot be used together: {error}"
            f"{'' if password is None else ' (or QUERYLOOP_KAFKA_SSL_KEY_PASSWORD is wrong)'}"
        ) from None


def checked_bootstrap(bootstrap: str) -> str:
    """Return addresses of brokers as they are. Raises ValueError when one of them is no host:port."""
    for address in bootstrap.split(","):
        if not (found := ADDRESS.fullmatch(address)) or not 0 < int(found["port"]) < 65_536:
            raise ValueError(f"{address!r} is no host:port; write host:port of each broker, separated by commas")
    return bootstrap


def bootstrap_of(address: Address) -> str:
    """Return host:port of an address, several with commas between them; empty where there is none."""
    return address if isinstance(address, str) else address.bootstrap or ""


def client_options(address: Address) -> dict[str, Any]:
    """Return what a client of kafka-python needs to connect and log in."""
    return _options(address, _make_token_provider)


def asyncio_options(address: Address) -> dict[str, Any]:
    """Return what a client of aiokafka needs to connect and log in; it uses the same names."""
    return _options(address, _make_async_token_provider)


def _options(address: Address, make_provider: Any) -> dict[str, Any]:
    if isinstance(address, str) or address.security_protocol == "PLAINTEXT":
        return {"bootstrap_servers": bootstrap_of(address)}
    options: dict[str, Any] = {"bootstrap_servers": bootstrap_of(address), "security_protocol": address.security_protocol}
    if address.uses_tls:
        options["ssl_context"] = make_ssl_context(address)
    if not address.uses_sasl:
        return options
    _keep_secrets_out_of_logs()
    options["sasl_mechanism"] = address.sasl_mechanism
    if address.sasl_token_file is not None:
        return options | {"sasl_oauth_token_provider": make_provider(address.sasl_token_file)}
    password = address.sasl_password.get_secret_value() if address.sasl_password else None
    return options | {"sasl_plain_username": address.sasl_username, "sasl_plain_password": password}


def _keep_secrets_out_of_logs() -> None:
    """Keep the client libraries from logging at debug level: they log passwords and tokens there, in what they send."""
    for name in ("kafka", "aiokafka"):
        logger = logging.getLogger(name)
        if logger.getEffectiveLevel() < logging.INFO:
            logger.setLevel(logging.INFO)


def read_token(path: Path) -> str:
    """Return the token in a file. Raises OSError naming the setting when there is none."""
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise OSError(f"kafka.sasl_token_file = {str(path)!r} cannot be read: {error}") from error
    if not token:
        raise OSError(f"kafka.sasl_token_file = {str(path)!r} is empty")
    return token


def _make_token_provider(path: Path) -> AbstractTokenProvider:
    from kafka.net.sasl.oauth import AbstractTokenProvider

    class TokenFile(AbstractTokenProvider):  # type: ignore[misc]
        def token(self) -> str:
            return read_token(path)

    return TokenFile()


def _make_async_token_provider(path: Path) -> Any:
    import asyncio

    from aiokafka.abc import AbstractTokenProvider

    class AsyncTokenFile(AbstractTokenProvider):  # type: ignore[misc]
        async def token(self) -> str:
            return await asyncio.to_thread(read_token, path)

    return AsyncTokenFile()
