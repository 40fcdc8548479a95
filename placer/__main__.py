"""Run the command line as `python -m placer`."""

from placer.cli import main

if __name__ == "__main__":
    main()
