"""Shards, the batch plan, the token contract, collators and data modules."""
