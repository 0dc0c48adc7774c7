"""`python -m hardbit` is the command `hardbit`."""

import sys

from hardbit.cli import main

sys.exit(main())
