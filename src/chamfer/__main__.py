"""`python -m chamfer` is the command `chamfer`."""

from chamfer.cli import main

main()
