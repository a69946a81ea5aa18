"""`python -m linnet` is the command `linnet`."""

from linnet.cli.app import main

main()
