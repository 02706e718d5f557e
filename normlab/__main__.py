"""`python -m normlab`."""

import sys

from normlab.study.cli import main

if __name__ == "__main__":
    sys.exit(main())
