"""Why a Kafka client failed, as one sentence that names what is at fault: the address, TLS, the login or a missing right.

Both client libraries report a failed connection as a timeout or as "cannot bootstrap"; the reason is in the chain of errors.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator

from streams.brokers.connection import Address, KafkaConnection, bootstrap_of

WRONG_NAME = (62, 64)
"""OpenSSL's codes of a certificate for another host name or address."""
UNKNOWN_AUTHORITY = (18, 19, 20, 21)
EXPIRED = (9, 10)
RIGHTS = {
    "TopicAuthorizationFailedError": "lacks a right on the topic (Describe and Read to count, Describe and Write to send)",
    "GroupAuthorizationFailedError": "lacks the right Read on the consumer group kafka.group",
    "GroupAuthorizationFailed": "lacks the right Read on the consumer group kafka.group",
    "ClusterAuthorizationFailedError": "lacks a right on the cluster (IdempotentWrite on brokers before Kafka 2.8)",
    "TransactionalIdAuthorizationFailedError": "lacks the right Write on the transactional id",
}
ALERTS = {
    "CERTIFICATE_REQUIRED": "it requires a client certificate: set kafka.ssl_cert_file and kafka.ssl_key_file",
    "WRONG_VERSION_NUMBER": "what listens there does not speak TLS: check the port, or kafka.security_protocol",
    "PACKET_LENGTH_TOO_LONG": "what listens there does not speak TLS: check the port, or kafka.security_protocol",
    "RECORD_LAYER_FAILURE": "what listens there does not speak TLS: check the port, or kafka.security_protocol",
}
UNREACHABLE = ("KafkaConnectionError", "KafkaTimeoutError", "NodeNotReadyError", "NoBrokersAvailable", "RequestTimedOutError")
WRONG_PROTOCOL = "InvalidReceiveError"
TOKEN_KEY = "kafka.sasl_token_file"
REFUSED_LOGIN = ("SaslAuthenticationFailed", "AuthenticationFailed", "UnsupportedSaslMechanism", "IllegalSaslState")
REFUSED_CERTIFICATE = ("BAD_CERTIFICATE", "UNKNOWN_CA", "CERTIFICATE_UNKNOWN", "CERTIFICATE_EXPIRED", "CERTIFICATE_REVOKED")


def principal(address: Address) -> str:
    """Return as whom a client acts at the cluster, for messages."""
    if isinstance(address, KafkaConnection):
        if address.sasl_username is not None:
            return f"User:{address.sasl_username}"
        if address.sasl_token_file is not None:
            return "the user of the token in kafka.sasl_token_file"
        if address.ssl_cert_file is not None:
            return "the user of the certificate in kafka.ssl_cert_file"
    return "User:ANONYMOUS"


def explain(error: BaseException, address: Address) -> str:
    """Return why a client failed, in one sentence with the broker's address and what to do."""
    return f"broker {bootstrap_of(address)}: {explain_reason(error, address)}"


def explain_reason(error: BaseException, address: Address) -> str:
    """Return the same without the broker's address."""
    chain = list(_chain(error))
    for one in chain:
        if reason := _rights(one, address) or _tls(one) or _login(one, address):
            return reason
    return _no_answer(chain)


def is_hopeless(error: BaseException) -> bool:
    """Return whether connecting again with the same settings cannot help: a certificate, a login or a protocol is refused."""
    chain = list(_chain(error))
    return any(
        _tls(one) is not None or type(one).__name__.startswith((*REFUSED_LOGIN, WRONG_PROTOCOL)) or TOKEN_KEY in str(one)
        for one in chain
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those that led to it; kafka-python also passes them as arguments of its own."""
    waiting: list[BaseException | None] = [error]
    seen: list[BaseException] = []
    while waiting:
        one = waiting.pop(0)
        if one is None or one in seen:
            continue
        seen.append(one)
        yield one
        waiting += [one.__cause__, one.__context__, *(part for part in one.args if isinstance(part, BaseException))]


def _rights(error: BaseException, address: Address) -> str | None:
    lacking = RIGHTS.get(type(error).__name__)
    if lacking is None:
        return None
    name = f" ({error})" if str(error) else ""
    return f"{principal(address)} {lacking}{name}: allow it (docs/kafka.md lists what each process needs)"


def _tls(error: BaseException) -> str | None:
    if isinstance(error, ssl.SSLCertVerificationError):
        return _refused_by_us(error)
    if not isinstance(error, ssl.SSLError):
        return None
    reason = getattr(error, "reason", None) or ""  # not every one has it
    for name, text in ALERTS.items():
        if name in reason:
            return text
    if any(name in reason for name in REFUSED_CERTIFICATE):
        return (
            f"it refuses this client's certificate, or that there is none ({reason}): "
            "kafka.ssl_cert_file and kafka.ssl_key_file have to name one that is signed by an authority it trusts"
        )
    return None


def _refused_by_us(error: ssl.SSLCertVerificationError) -> str:
    if error.verify_code in WRONG_NAME:
        return (
            f"its certificate is for another name ({error.verify_message}): use a name that is in it, in kafka.bootstrap and in "
            "the broker's advertised.listeners, or set kafka.ssl_check_hostname to false"
        )
    if error.verify_code in UNKNOWN_AUTHORITY:
        return (
            f"its certificate is signed by an authority that is not trusted here ({error.verify_message}): "
            "set kafka.ssl_ca_file to that authority's certificate"
        )
    if error.verify_code in EXPIRED:
        return f"its certificate is not valid now ({error.verify_message}): renew it, or set this machine's clock"
    return f"its certificate is refused: {error.verify_message}"


def _login(error: BaseException, address: Address) -> str | None:
    name = type(error).__name__
    if name.startswith("UnsupportedSaslMechanism") and isinstance(address, KafkaConnection):
        return f"it does not offer kafka.sasl_mechanism = {address.sasl_mechanism}: {error}"
    if name == WRONG_PROTOCOL:
        return "what listens there speaks TLS, or is not Kafka: set kafka.security_protocol to SSL or SASL_SSL, or check the port"
    if name.startswith("IllegalSaslState"):
        return "what listens there has no login: check the port, or kafka.security_protocol"
    if TOKEN_KEY in str(error) and isinstance(error, OSError):
        return str(error)
    if not name.startswith(("SaslAuthenticationFailed", "AuthenticationFailed")) or not isinstance(address, KafkaConnection):
        return None
    if address.sasl_mechanism == "OAUTHBEARER":
        return "it refuses the token in kafka.sasl_token_file: is it expired, or for another audience?"
    return (
        f"it refuses the login of {principal(address)} by {address.sasl_mechanism}: "
        "check kafka.sasl_username and QUERYLOOP_KAFKA_SASL_PASSWORD"
    )


def _no_answer(chain: list[BaseException]) -> str:
    """Return the sentence for an address at which nothing answers, or not as Kafka does; else the error as it is."""
    text = " ".join(str(one) for one in chain)
    if "ECONNREFUSED" in text or any(isinstance(one, ConnectionRefusedError) for one in chain):
        return "nothing listens there; is it running, and is the address right?"
    if any(part in text for part in ("socket disconnected", "Connection reset", "EOF occurred", "Connection closed")):
        return (
            "it accepts connections and closes them before it answers: "
            "kafka.security_protocol is likely not that of this listener (one with a login closes connections without one)"
        )
    said = _name(chain[0])
    if not any(isinstance(one, OSError) or type(one).__name__ in UNREACHABLE for one in chain):
        return said
    if len(chain) > 1 and str(chain[-1]):
        said += f" ({_name(chain[-1])})"
    return f"{said}; is it running, and is the address right?"


def _name(error: BaseException) -> str:
    """Return an error's type and text; Kafka's errors begin with their type already."""
    kind, text = type(error).__name__, str(error)
    return text if text.startswith(kind) else f"{kind}: {text}"
