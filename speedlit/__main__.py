"""``python -m speedlit`` is the same as ``speedlit``."""

import sys

from speedlit.cli import main

if __name__ == "__main__":
    sys.exit(main())
