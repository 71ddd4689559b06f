"""The embedded teacher: a checkable world behind an OpenAI-compatible server. Reached by HTTP alone; never imports torch."""
