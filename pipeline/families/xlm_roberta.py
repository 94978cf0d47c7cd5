"""XLM-RoBERTa: RoBERTa over many languages."""

from pipeline.families.roberta import FAMILY

__all__ = ["FAMILY"]
