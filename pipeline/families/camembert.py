"""CamemBERT: RoBERTa in French."""

from pipeline.families.roberta import FAMILY

__all__ = ["FAMILY"]
