"""The schedule topic: what entries are defined at runtime, the state of every entry, and the notes of members."""
