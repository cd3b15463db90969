"""`python -m fastlstm` is the command `fastlstm`."""

from .cli import main

if __name__ == "__main__":
    main()
