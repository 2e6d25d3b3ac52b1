"""`python -m groundstation`, and what the program's own command begins with."""

from onboard.console.signals import loading

loading()

from groundstation.cli import main  # noqa: E402 - Ctrl-C is quiet while this loads

if __name__ == "__main__":
    main()
