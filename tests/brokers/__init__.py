"""Task brokers as processes of this machine, which a test may stop, kill and start again on the same port."""
