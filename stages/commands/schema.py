"""Writes params.schema.json, with which editors complete and check params.yaml."""

import json
from pathlib import Path

from pipeline.base.files import write_atomically
from pipeline.settings.params import json_schema

PATH = Path("params.schema.json")


def command() -> None:
    write_atomically(PATH, schema_text())
    print(f"wrote {PATH}")


def schema_text() -> str:
    """The file's content; a test compares it with what is committed."""
    return json.dumps(json_schema(), indent=1, ensure_ascii=False) + "\n"
