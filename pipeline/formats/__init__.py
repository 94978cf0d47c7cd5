"""Files that an exporter writes and a check or a runtime reads again."""
