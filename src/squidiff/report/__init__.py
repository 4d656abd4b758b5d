"""What people read of a run: pictures and a page, made from tidy tables and arrays. Nothing is scored here."""
