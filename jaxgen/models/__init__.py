"""Flax (Linen) networks, and nothing but networks: no loss and no schedule is imported here."""
