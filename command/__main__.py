"""`python -m mln_keras` of an installed mln_keras, whose wheel has this file a folder higher."""

import sys

from mln_keras.command.run import main

if __name__ == "__main__":
    sys.exit(main())
