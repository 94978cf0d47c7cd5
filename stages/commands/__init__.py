"""Commands of `decant` that are no stage, one file each."""
