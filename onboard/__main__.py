"""`python -m onboard`: the same as the installed command."""

from onboard.cli import main

main()
