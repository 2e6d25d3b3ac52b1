"""Entry point of `python -m groundstation` and of the `groundstation` command."""

from onboard.console.signals import loading

loading()

from groundstation.cli import main  # noqa: E402 - Ctrl-C is quiet while this loads

if __name__ == "__main__":
    main()
