"""Local generation with trained models."""
