"""Which data folder a process must work on for a command to take its answer.

A process that another stack started may listen at the default address. So an answer counts only from a process on the data folder
of the command's settings. A process elsewhere is asked by naming its address for this call.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal

from queryloop.settings import Settings
from streams.runtime.data_folder import DataFolder, find_data_folder
from streams.runtime.settings import PREFIX

Section = Literal["worker", "serving"]
REMOTE = "; to ask a process elsewhere, name its address in QUERYLOOP_{0}_HOST or QUERYLOOP_{0}_PORT"


def expected_folder(settings: Settings, section: Section, environ: Mapping[str, str] | None = None) -> DataFolder | None:
    """Return the folder that a process at the address in the settings must work on; None where any will do.

    Any will do when host or port is given in the environment; from the settings file they are only as good as its data.dir, so
    there any will do when no process has worked on that folder here.
    """
    given = {name.upper() for name, value in (os.environ if environ is None else environ).items() if value}
    folder = find_data_folder(settings.data.dir)
    if given & {f"{PREFIX}{section}_{key}".upper() for key in ("host", "port")}:
        return None
    named = getattr(settings, section).model_fields_set & {"host", "port"}
    return None if named and folder.id is None else folder


def explain_stranger(reason: str, section: Section) -> str:
    """Return why a process was not asked, and how it can be."""
    return reason + REMOTE.format(section.upper())
