"""`python -m firmware_sim`: the same as the installed command."""

from firmware_sim.cli import main

main()
