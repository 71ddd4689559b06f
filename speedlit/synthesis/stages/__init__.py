"""One file per synthesis stage, each with ``run(ctx)``."""
