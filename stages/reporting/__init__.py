"""What the report stage shows: evidence read and judged, figures, tables, one page."""
