"""Students from a teacher: variants, controls, phases."""
