"""params.yaml, typed: one file a section."""
