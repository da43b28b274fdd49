"""`celery neli explain`: what became of one slot of an entry, in words, from the topics alone.

`gather` reads the leader topic, the schedule topic and the history into `Facts`; `story` judges them and is pure.
"""
