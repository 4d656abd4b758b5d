"""What comes in: AnnData is checked, prepared, and turned into frozen tables, conditions and batches."""
