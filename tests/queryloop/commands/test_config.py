"""`queryloop config`: what it prints can be read back, and holds no secret."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

from queryloop.commands.config import MASK, masked, to_toml
from queryloop.settings import Settings
from streams.runtime.settings import load_settings

KEY = "a-key-of-sixteen-characters"


def written(folder: Path, text: str) -> Path:
    path = folder / "queryloop.toml"
    path.write_text(text)
    return path


def test_no_secret_is_ever_shown(tmp_path: Path) -> None:
    settings = load_settings(Settings, written(tmp_path, ""), {"QUERYLOOP_SERVING_KEY": KEY, "QUERYLOOP_WORKER_KEY": KEY})
    tables = masked(settings)
    assert tables["serving"]["key"] == tables["worker"]["key"] == MASK
    assert KEY not in to_toml(tables) + json.dumps(tables) + repr(settings)


def test_the_printed_settings_are_toml_that_gives_the_same_settings(tmp_path: Path) -> None:
    given = written(
        tmp_path, '[tasks.suggest]\nname = "suggest"\nn = 4\ntemplate = "ask \\"{query}\\" \\n=>"\n[lake]\nmaturity_floor_s = 7\n'
    )
    settings = load_settings(Settings, given, {})
    printed = to_toml(masked(settings))
    assert tomllib.loads(printed)["tasks"]["suggest"]["n"] == 4
    assert load_settings(Settings, written(tmp_path, printed), {}) == settings
