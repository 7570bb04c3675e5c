"""`python -m convlstm` is the command `convlstm`."""

import sys

from convlstm.cli import main

if __name__ == "__main__":
    sys.exit(main())
