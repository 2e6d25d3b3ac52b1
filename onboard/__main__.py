"""`python -m onboard`, and what the program's own command begins with."""

from onboard.console.signals import loading

loading()

from onboard.cli import main  # noqa: E402 - Ctrl-C is quiet while this loads

if __name__ == "__main__":
    main()
