"""`python -m hardbit_deploy` is the command `hardbit-deploy`."""

import sys

from hardbit_deploy.cli import main

if __name__ == "__main__":
    sys.exit(main())
