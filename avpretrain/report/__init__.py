"""From finished runs to one HTML page; the ledger of costs, hours and savings."""
