"""One node of real Kafka as production runs it: TLS, logins of each mechanism, client certificates and ACLs, on loopback.

Its plaintext listener is its operator's: there a client is User:ANONYMOUS, who may do everything.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trustme
from cryptography.hazmat.primitives import serialization
from kafka.admin import ACL, ACLOperation, ACLPermissionType, KafkaAdminClient, ResourcePattern, ResourceType

from streams.brokers.broker import answers
from streams.brokers.node import HOST, KafkaNode
from streams.runtime.processes import Child, free_port

USER, PASSWORD = "loop", "correct horse battery"
NOBODY = "nobody"
"""A user with no right at all."""
USERS = (USER, NOBODY, "worker-scram", "groupless", "tester")
"""All with the same password."""
LISTENERS = ("SASL_SSL", "SSL", "SASL_PLAINTEXT")
PROPERTIES = """\
listeners=PLAINTEXT://{host}:{port},CONTROLLER://{host}:{controller_port},{listeners}
advertised.listeners=PLAINTEXT://{host}:{port},{listeners}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL_SSL:SASL_SSL,SSL:SSL,SASL_PLAINTEXT:SASL_PLAINTEXT
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS
ssl.keystore.type=PEM
ssl.keystore.location={folder}/node.pem
ssl.truststore.type=PEM
ssl.truststore.location={folder}/ca.pem
listener.name.ssl.ssl.client.auth=required
listener.name.ssl.ssl.principal.mapping.rules=RULE:^.*CN=([^,]+).*$/$1/,DEFAULT
sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER
"""
LOGINS = """\
listener.name.{listener}.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required {plain};
listener.name.{listener}.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.{listener}.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.{listener}.oauthbearer.sasl.jaas.config=org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule \
required unsecuredLoginStringClaim_sub="broker";
"""


@dataclass(frozen=True)
class SecuredNode(KafkaNode):
    """A node with more listeners; its users of SCRAM are made when its storage is formatted."""

    ports: dict[str, int] = field(default_factory=lambda: {name: free_port(HOST) for name in LISTENERS})

    def _write_properties(self) -> Path:
        path = super()._write_properties()
        listeners = ",".join(f"{name}://{HOST}:{port}" for name, port in self.ports.items())
        text = PROPERTIES.format(
            host=HOST, port=self.port, controller_port=self.controllers[1], listeners=listeners, folder=self.folder
        )
        plain = " ".join(f'user_{user}="{PASSWORD}"' for user in USERS)
        logins = "".join(LOGINS.format(listener=name, plain=plain) for name in ("sasl_ssl", "sasl_plaintext"))
        path.write_text(path.read_text() + text + logins)
        return path

    def _format(self, tool: list[str], log: Path) -> None:
        scram = [
            option
            for user in USERS
            for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512")
            for option in ("--add-scram", f'{mechanism}=[name={user},password="{PASSWORD}"]')
        ]
        super()._format([*tool, *scram], log)


@dataclass(frozen=True)
class SecuredKafka:
    """The running node and the files of its authority."""

    node: SecuredNode
    child: Child
    authority: trustme.CA

    @property
    def folder(self) -> Path:
        return self.node.folder

    @property
    def plain(self) -> str:
        """host:port at which everything is allowed."""
        return self.node.address

    def address(self, listener: str) -> str:
        return f"{HOST}:{self.node.ports[listener]}"

    def scram(self, mechanism: str = "SCRAM-SHA-512", user: str = USER, listener: str = "SASL_SSL") -> dict[str, Any]:
        """Return the settings of a login by name and password."""
        login = {"sasl_mechanism": mechanism, "sasl_username": user, "sasl_password": PASSWORD}
        return {**self._over(listener), **login}

    def mutual_tls(self, user: str = USER) -> dict[str, Any]:
        """Return the settings of a client that has a certificate."""
        return {**self._over("SSL"), "ssl_cert_file": self.make_certificate(user)}

    def token(self, user: str = USER) -> dict[str, Any]:
        """Return the settings of a login by an unsigned token, which this node accepts."""
        path = self.folder / f"{user}.token"
        path.write_text(make_token(user) + "\n")
        return {**self._over("SASL_SSL"), "sasl_mechanism": "OAUTHBEARER", "sasl_token_file": path}

    def _over(self, listener: str) -> dict[str, Any]:
        trusted = {"ssl_ca_file": self.folder / "ca.pem"} if listener.endswith("SSL") else {}
        return {"bootstrap": self.address(listener), "security_protocol": listener, **trusted}

    def make_certificate(self, user: str) -> Path:
        """Return a PEM file of a user's certificate and its key."""
        path = self.folder / f"{user}.pem"
        self.authority.issue_cert(f"{user}@example.org", common_name=user).private_key_and_cert_chain_pem.write_to_path(path)
        return path

    def allow(self, user: str, *rights: tuple[str, str, str]) -> None:
        """Allow a user rights: each the kind of resource ("TOPIC", "GROUP"), its name, the operation ("READ")."""
        acls = [
            ACL(
                f"User:{user}",
                "*",
                ACLOperation[operation],
                ACLPermissionType.ALLOW,
                ResourcePattern(ResourceType[kind], name),
            )
            for kind, name, operation in rights
        ]
        with KafkaAdminClient(bootstrap_servers=self.plain) as admin:
            admin.create_acls(acls)


def make_token(user: str) -> str:
    """Return a token without signature for a user, valid for an hour."""

    def part(content: dict[str, Any]) -> str:
        return base64.urlsafe_b64encode(json.dumps(content).encode()).rstrip(b"=").decode()

    now = int(time.time())
    return f"{part({'alg': 'none'})}.{part({'sub': user, 'iat': now, 'exp': now + 3600})}."


def as_java_reads_it(issued: trustme.LeafCert) -> bytes:
    """Return a key and its certificates as PEM with the key in PKCS 8, the only form that Java reads."""
    key = serialization.load_pem_private_key(issued.private_key_pem.bytes(), None)
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return key.private_bytes(*form) + b"".join(blob.bytes() for blob in issued.cert_chain_pems)


@contextmanager
def run_secured_kafka(folder: Path) -> Iterator[SecuredKafka]:
    """Run a node with certificates of an authority of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    (folder / "node.pem").write_bytes(as_java_reads_it(authority.issue_cert(HOST, "kafka.example.org")))
    node = SecuredNode(folder, free_port(HOST), {1: free_port(HOST)})
    with node.launch() as child:
        child.wait_until(lambda: answers(node.address), 60.0, "answering")
        yield SecuredKafka(node, child, authority)
