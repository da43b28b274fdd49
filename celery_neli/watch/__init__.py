"""`celery neli watch`: roles, terms, members, handovers and slots, live: in a terminal with rich, else as plain lines.

`watcher` gathers what the topics say, `model` is what is shown, `plain` and `live` show it.
"""
