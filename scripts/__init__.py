"""The commands: `gptlite NAME`, or `python -m scripts.NAME` in a clone. This folder is installed as `gptlite`.

`python -m` imports this file before everything else: from here on Ctrl-C ends the command in one line, and the imports
run without garbage collection, half a second faster.
"""

import sys


if sys.argv[0] == "-m":
    from .cli import before_imports

    before_imports()
