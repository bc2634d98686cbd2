"""``python -m segue``."""

from segue.engine.cli import main

main()
