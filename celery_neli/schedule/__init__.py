"""When entries are due: pure date mathematics, without a clock, a thread or Kafka.

`slots` computes the due times of schedules (`crontabs` those of crontabs, `cron` is a class of its own), `misfire` and `overlap` decide which due
times run, `due` answers for one entry, and `heap` keeps the next due time of each of many.
"""
