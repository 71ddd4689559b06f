"""Synthesis: prompts, the teacher client, parsing, filters and the stages that write data. Nothing here imports torch."""
