"""Why a Kafka client failed: each cause is its own sentence, and the address is blamed only when nothing answers there."""

from __future__ import annotations

import ssl

import pytest
from aiokafka import errors as aio
from kafka import errors
from pydantic import SecretStr

from streams.brokers.connection import KafkaConnection
from streams.brokers.failures import explain, is_hopeless

LOGIN = KafkaConnection(
    bootstrap="k:9093",
    security_protocol="SASL_PLAINTEXT",
    sasl_mechanism="SCRAM-SHA-512",
    sasl_username="loop",
    sasl_password=SecretStr("a secret"),
)
ADDRESS = "is the address right?"


def certificate_error(code: int, message: str) -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, message)
    error.verify_code, error.verify_message = code, message
    return error


def tls_error(reason: str) -> ssl.SSLError:
    error = ssl.SSLError(1, reason)
    error.reason = reason
    return error


def caused_by(cause: BaseException) -> Exception:
    """Return an error as kafka-python raises it: a timeout, with what led to it as its cause."""
    error = errors.KafkaTimeoutError("Unable to bootstrap from k:9093")
    error.__cause__ = errors.KafkaConnectionError(cause)
    return error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (caused_by(certificate_error(62, "Hostname mismatch")), "kafka.ssl_check_hostname"),
        (caused_by(certificate_error(20, "unable to get local issuer certificate")), "kafka.ssl_ca_file"),
        (caused_by(certificate_error(10, "certificate has expired")), "renew it"),
        (caused_by(certificate_error(7, "signature failure")), "its certificate is refused: signature failure"),
        (caused_by(tls_error("TLSV13_ALERT_CERTIFICATE_REQUIRED")), "it requires a client certificate"),
        (caused_by(tls_error("TLSV1_ALERT_UNKNOWN_CA")), "it refuses this client's certificate"),
        (caused_by(tls_error("WRONG_VERSION_NUMBER")), "does not speak TLS"),
        (errors.SaslAuthenticationFailedError("no"), "it refuses the login of User:loop by SCRAM-SHA-512"),
        (errors.UnsupportedSaslMechanismError("only PLAIN"), "it does not offer kafka.sasl_mechanism = SCRAM-SHA-512"),
        (errors.TopicAuthorizationFailedError("events"), "User:loop lacks a right on the topic"),
        (aio.TopicAuthorizationFailedError("events"), "User:loop lacks a right on the topic"),
        (aio.GroupAuthorizationFailedError("queryloop"), "User:loop lacks the right Read on the consumer group kafka.group"),
        (errors.ClusterAuthorizationFailedError(), "User:loop lacks a right on the cluster"),
        (errors.KafkaConnectionError("socket disconnected"), "closes them before it answers"),
        (errors.InvalidReplicationFactorError("3 > 1"), "InvalidReplicationFactorError"),
    ],
)
def test_the_cause_is_named_and_not_the_address(error: Exception, said: str) -> None:
    text = explain(error, LOGIN)
    assert text.startswith("broker k:9093: ") and said in text
    assert ADDRESS not in text and "a secret" not in text


@pytest.mark.parametrize(
    "error",
    [
        caused_by(errors.KafkaConnectionError("111 ECONNREFUSED")),
        caused_by(errors.KafkaConnectionError("DNS Resolution failure")),
        errors.KafkaTimeoutError("Timed out after 3000 ms"),
        ConnectionRefusedError(111, "refused"),
    ],
)
def test_the_address_is_named_when_nothing_answers_there(error: Exception) -> None:
    assert ADDRESS in explain(error, "k:9092")


def test_a_client_without_login_is_anonymous() -> None:
    assert "User:ANONYMOUS lacks" in explain(errors.TopicAuthorizationFailedError("events"), "k:9092")


@pytest.mark.parametrize("hopeless", [True, False])
def test_only_what_a_new_attempt_cannot_change_is_hopeless(hopeless: bool) -> None:
    lasting = [certificate_error(62, "x"), errors.SaslAuthenticationFailedError("no"), tls_error("WRONG_VERSION_NUMBER")]
    passing = [errors.KafkaConnectionError("socket disconnected"), ssl.SSLEOFError(8, "EOF occurred"), OSError("reset")]
    assert [is_hopeless(caused_by(one)) for one in (lasting if hopeless else passing)] == [hopeless] * 3
