"""Backbones, adapters, pooling and finished model folders."""
