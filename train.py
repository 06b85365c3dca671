"""Pretrain data2vec: ``python train.py modality=audio|vision|text``; ``-h`` prints the settings.

The wiring is in d2v_pretrain/training/run.py, all values are in conf/.
"""

import signal
import sys

if __name__ == "__main__":
    # Until the run listens, Ctrl-C ends the process without a stack trace.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from d2v_pretrain.cli import train

if __name__ == "__main__":
    train(sys.argv[1:])
