"""Data sources by name, and the Grain pipeline that turns one into batches."""
