"""`python -m groundstation`: the same as the installed command."""

from groundstation.cli import main

main()
