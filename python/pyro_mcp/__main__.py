"""`python -m pyro_mcp`: the command line."""

import os
import sys

from . import _executable

if __name__ == "__main__":
    program = _executable.find(None)
    os.execv(program, ["pyro", *sys.argv[1:]])
