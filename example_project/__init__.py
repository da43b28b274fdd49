"""An app whose beats elect a leader, and a demo that stops the leader in every way. See README.md beside this file."""
