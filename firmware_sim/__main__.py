"""Entry point of `python -m firmware_sim` and of the `firmware-sim` command."""

from onboard.console.signals import loading

loading()

from firmware_sim.cli import main  # noqa: E402 - Ctrl-C is quiet while this loads

if __name__ == "__main__":
    main()
