"""tracker and sqlite through alignkit's conformance kit."""

import sqlite3

from alignkit.testing import ServiceConformance


class TestTracker(ServiceConformance):
    name = "tracker"


def write_rows(directory):
    connection = sqlite3.connect(directory / "pairs.db")
    connection.execute("CREATE TABLE pairs (prompt TEXT, chosen TEXT, rejected TEXT)")
    rows = [(f"what is {i} ?", f" {i} .", " no .") for i in range(20)]
    connection.executemany("INSERT INTO pairs VALUES (?, ?, ?)", rows)
    connection.commit()
    connection.close()
    return f"sqlite://{directory / 'pairs.db'}?table=pairs"


class TestSQLite(ServiceConformance):
    name = "sqlite"
    source = staticmethod(write_rows)
