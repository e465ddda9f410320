"""``python -m alexdeploy``."""

from alexdeploy.cli import main

main()
