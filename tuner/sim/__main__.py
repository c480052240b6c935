"""Entry point of `python -m tuner.sim serve MODEL …`."""

import sys

from tuner.sim.server import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
