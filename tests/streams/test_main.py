"""`python -m streams`: what the process does before it is a worker."""

from __future__ import annotations

import subprocess
import sys

WITHOUT_PANDAS = """
import sys
import streams.__main__
from streams.worker.tuning import block_pandas
block_pandas()
import duckdb
import pyarrow as pa
table = pa.table({"ts": pa.array([1, 2]), "text": pa.array(["a", None])})
con = duckdb.connect()
con.register("given", table)
assert con.execute("SELECT sum(ts) FROM given").fetchall() == [(3,)]
assert con.sql("SELECT * FROM given").to_arrow_table().to_pydict() == table.to_pydict()
assert "pandas" not in sys.modules
"""


def test_arrow_and_duckdb_work_without_pandas() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_PANDAS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
