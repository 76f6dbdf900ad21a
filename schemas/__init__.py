"""Every shape that two parts of Driftloop agree on: readings, events, topics, settings. No I/O, no logic."""
