"""The command line and what needs all the rooms, and the public names, imported late (`from queryloop import Emitter`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streams.brokers.connection import KafkaConnection
    from streams.emitter.emitter import Emitter, EmitterSettings

__all__ = ["Emitter", "EmitterSettings", "KafkaConnection"]


def __getattr__(name: str) -> Any:
    """Import a public name at its first use, so that `import queryloop` stays cheap."""
    if name == "KafkaConnection":
        from streams.brokers.connection import KafkaConnection

        return KafkaConnection
    if name in __all__:
        import streams.emitter.emitter

        return getattr(streams.emitter.emitter, name)
    raise AttributeError(f"module 'queryloop' has no attribute {name!r}; public names: {', '.join(__all__)}")
