"""speedlit: the SPEED loop (arXiv 2410.18634) and a modular trainer for generators and embedders."""

__version__ = "0.1.0"
