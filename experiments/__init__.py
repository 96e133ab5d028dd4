"""Programs around the library: everything that reads flags, files or data sets."""

import signal
import sys
from pathlib import Path

from absl import logging

_AS_MODULE = sys.argv[:1] == ["-m"] or Path(sys.argv[0] or "-").name == "jaxlocal"
if _AS_MODULE and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # while a program imports, Ctrl-C ends it without a traceback

logging.set_verbosity(logging.FATAL)  # Orbax logs every file, and the traceback of what it raises; --verbosity shows it
