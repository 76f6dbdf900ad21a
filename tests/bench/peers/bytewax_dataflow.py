"""Bytewax: a Kafka source of batches of 1,000 and a step that keeps nothing."""

import bytewax.operators as op
from bytewax.connectors.kafka import operators as kafka
from bytewax.dataflow import Dataflow
from bytewax.testing import TestingSink, run_main
from work import Work, arguments

given = arguments()
work = Work(given)
flow = Dataflow("activity")
source = kafka.input("source", flow, brokers=[given.bootstrap], topics=[given.topic], tail=True, batch_size=1000)
kept = op.filter_map("work", source.oks, lambda message: work.take(message.value))
op.output("sink", kept, TestingSink([]))
run_main(flow)
