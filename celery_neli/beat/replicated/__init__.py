"""Our own scheduler: an engine with a ledger of slots. In a beat that leads, it claims its slots."""
