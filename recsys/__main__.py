"""`python -m recsys`, the command line: `torchrun -m recsys train ...` starts it in every worker."""

from recsys.cli import main

if __name__ == "__main__":
    main()
