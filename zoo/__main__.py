"""`python -m zoo` is the command line of zoo.cli."""

from zoo.cli import main

if __name__ == "__main__":
    main()
