"""The schedule as code: a file of runtime entries, compared with the schedule topic, and applied to it.

`reading` makes plain values of YAML or JSON, with the lines where they stand; `document` checks them as entries;
`plan` says what is different; `applying` makes it so; `writing` makes a file of what is there.
"""
