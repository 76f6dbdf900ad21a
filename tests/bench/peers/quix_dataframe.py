"""Quix Streams: a function applied to a streaming data frame."""

from quixstreams import Application
from work import Work, arguments

given = arguments()
work = Work(given)
app = Application(
    broker_address=given.bootstrap,
    consumer_group=given.group,
    auto_offset_reset="earliest",
    auto_create_topics=False,
    loglevel="ERROR",
)
frame = app.dataframe(app.topic(given.topic, value_deserializer="bytes"))
frame.apply(work.take)
app.run()
