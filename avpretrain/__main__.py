"""`python -m avpretrain VERB ...`."""

from avpretrain.cli import main

main()
