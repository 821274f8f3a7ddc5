"""Stations for spark-submit and containers: the words of `mmrec steps`, with engine spark unless they name one.

    spark-submit jobs/step.py features recommend --home HOME --date 2026-03-02 --json
"""

import sys

from mmrec.cli import main

if __name__ == "__main__":
    words = sys.argv[1:]
    named = any(w == "--engine" or w.startswith("--engine=") for w in words)
    sys.argv[1:] = ["steps", *words, *([] if named else ["--engine", "spark"])]
    main()
