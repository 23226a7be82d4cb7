"""Events that killed children left in outboxes of their own: the next emitter on the folder takes them over and delivers them.

Nobody may ever open such a subfolder again: the next start may fork fewer children, or none.
"""

from __future__ import annotations

import logging

from streams.emitter.outbox import Outbox, OutboxError, OutboxInUseError

log = logging.getLogger(__name__)

FORKED = "fork-"
"""The beginning of the names of the subfolders that forked children use."""


def take_left(outbox: Outbox) -> None:
    """Move undelivered events from the subfolders of forked children that no process uses into this outbox.

    What does not fit, or cannot be read or written, stays and is logged. After a crash on the way some events are in both, and
    arrive twice.
    """
    for folder in sorted(outbox.folder.glob(f"{FORKED}*")):
        try:
            left = Outbox(folder, outbox.max_bytes, 0.0)
        except OutboxInUseError:
            continue
        except OutboxError as error:
            log.error("event=left_outbox_unreadable folder=%s error=%r", folder, str(error))
            continue
        try:
            _move(left, outbox)
        except OSError as error:
            log.error("event=left_outbox_not_taken folder=%s error=%r", folder, str(error))
        finally:
            left.release()


def _move(left: Outbox, outbox: Outbox) -> None:
    """Move the undelivered lines; raises OSError, and then the lines that were not moved stay."""
    begin = left.mark.next
    number, lines = left.read(begin)
    moved = 0
    while lines:
        if outbox.segment_to_drop(sum(len(one.line) for one in lines)) is not None:
            said = "raise emitter.outbox_max_bytes, or start again once this outbox is delivered"
            log.error("event=left_outbox_not_taken folder=%s reason='outbox full' action=%r", left.folder, said)
            break
        outbox.append(lines)
        moved += len(lines)
        number, lines = left.read(number + len(lines))
    if moved:
        outbox.sync()
        left.mark_delivered(number, left.mark.topic_id)
        log.warning("event=left_outbox_taken folder=%s events=%d into=%s", left.folder, moved, outbox.folder)
