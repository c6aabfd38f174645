"""Many jobs from one command: expansion, identity, ledger, processes."""
