"""The log of a server: one line of JSON for everything that happens to a job or a worker. Prompts are not in it."""

from __future__ import annotations

import json
import logging
from datetime import datetime, timezone
from typing import Any

_USUAL = frozenset(vars(logging.makeLogRecord({})))


class JsonFormatter(logging.Formatter):
    """Formats a record as JSON: time, level, logger and event, and what the record was given as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns a line without line breaks."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        line |= {name: value for name, value in vars(record).items() if name not in _USUAL and name != "message"}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)
