"""`python -m taskpool.supervisor --fd N`: how a Pool starts its supervisor."""

import sys

from taskpool.supervisor.start import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
