"""Entry point of `python -m tuner.sim serve MODEL …`."""

import sys

try:
    from tuner.sim.server import main
except ModuleNotFoundError as error:
    if error.name not in ("aiohttp", "setproctitle"):
        raise
    sys.exit(f"error: the stand-in needs {error.name}\nhint: install tuner with its extra sim: pip install -e '.[sim]'")

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
