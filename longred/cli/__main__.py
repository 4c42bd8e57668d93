"""`python -m longred.cli`: the command line without the installed script."""

from longred.cli import main

main()
