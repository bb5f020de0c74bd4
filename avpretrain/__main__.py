"""`python -m avpretrain VERB ...`."""

from avpretrain.cli.main import main

main()
