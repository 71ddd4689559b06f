"""One file per command; each has ``run(argv) -> exit code`` and imports what is heavy only when it needs it."""
