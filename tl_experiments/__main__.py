"""``python -m tl_experiments`` is ``tl``."""

from tl_experiments.cli import main

if __name__ == "__main__":
    main()
