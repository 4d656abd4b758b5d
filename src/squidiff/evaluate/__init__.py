"""Scores any pair of AnnData, with floors, ceilings, intervals and a verdict. No torch."""
