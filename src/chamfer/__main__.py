"""`python -m chamfer` runs the command `chamfer`."""

from chamfer.cli import main

main()
