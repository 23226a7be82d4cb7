"""The settings of the Kafka connection as Faust takes them: one credentials object instead of aiokafka's options."""

from __future__ import annotations

from faust.auth import Credentials, OAuthCredentials, SASLCredentials, SSLCredentials

from streams.brokers.connection import KafkaConnection, asyncio_options


def make_credentials(connection: KafkaConnection) -> Credentials | None:
    """Return Faust's credentials, None for a plaintext connection."""
    options = asyncio_options(connection)
    context = options.get("ssl_context")
    if connection.uses_sasl and connection.sasl_token_file is not None:
        return OAuthCredentials(oauth_cb=options["sasl_oauth_token_provider"], ssl_context=context)
    if connection.uses_sasl:
        return SASLCredentials(
            username=options["sasl_plain_username"],
            password=options["sasl_plain_password"],
            mechanism=options["sasl_mechanism"],
            ssl_context=context,
        )
    return SSLCredentials(context) if connection.uses_tls else None
