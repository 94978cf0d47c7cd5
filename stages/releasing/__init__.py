"""Bundles that leave the house: signed, kept by version, and checked by whoever gets them."""
