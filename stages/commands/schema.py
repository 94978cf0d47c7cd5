"""Writes what is made from other files: JSON schemas, and what `decant new` copies."""

import json
from pathlib import Path
from typing import Any

from pipeline.base.files import write_atomically
from pipeline.base.records import Comparison, Record, Verdict
from pipeline.settings.params import json_schema
from stages import project
from stages.commands.run import PROJECT

PATH = Path("params.schema.json")
RECORDS: dict[str, type[Record]] = {
    "docs/verdict.schema.json": Verdict,
    "docs/comparison.schema.json": Comparison,
}


def command() -> None:
    for name, text in texts().items():
        write_atomically(Path(name), text)
        print(f"wrote {name}")


def texts() -> dict[str, str]:
    """File -> its content; a test compares them with what is committed."""
    made = {
        f"stages/project/{project.DVC}": project.dvc_yaml((PROJECT / project.DVC).read_text("utf-8")),
        f"stages/project/{project.PARAMS}": project.params_yaml((PROJECT / project.PARAMS).read_text("utf-8")),
    }
    schemas = {str(PATH): json_schema(), **{name: record_schema(record) for name, record in RECORDS.items()}}
    return made | {name: json.dumps(schema, indent=1, ensure_ascii=False) + "\n" for name, schema in schemas.items()}


def record_schema(record: type[Record]) -> dict[str, Any]:
    """A record as it lies on disk: with the hash of its content around it."""
    body = record.model_json_schema(mode="serialization")
    definitions = body.pop("$defs", {})
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"Decant {record.__name__.lower()}.json",
        "type": "object",
        "properties": {
            "sha256": {"type": "string", "description": "Of the record as JSON; a changed record is refused."},
            "record": body,
        },
        "required": ["sha256", "record"],
        "additionalProperties": False,
        "$defs": definitions,
    }
