"""When entries are due: pure date mathematics, without a clock, a thread or Kafka.

`cron` is a schedule class of our own. `slots` computes the due times of schedules (`crontabs` those of crontabs),
`misfire` and `overlap` decide which due times run, `due` answers for one entry, and `heap` keeps the next due time of
each of many.
"""
