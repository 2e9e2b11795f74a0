#!/usr/bin/env python3
"""Reads Millrace's events from Python, straight from the Kafka topic.

    pip install confluent-kafka fastavro
    set -a; . .millrace/env; set +a
    python3 tests/examples/read_events.py

Prints every event that is in the log, a line of JSON each, and ends. `read_committed` is what makes
the reader see exactly what happened: it leaves out what was written and then taken back.
"""

import io
import json
import os
import urllib.request

import confluent_kafka
import fastavro


class Decoder:
    """Decodes the Confluent wire format; each schema is asked for once, by its id."""

    def __init__(self, registry_url):
        self.registry_url = registry_url
        self.known = {}

    def decode(self, value):
        schema_id = int.from_bytes(value[1:5], "big")
        if schema_id not in self.known:
            url = f"{self.registry_url}/schemas/ids/{schema_id}"
            with urllib.request.urlopen(url, timeout=10) as answer:
                self.known[schema_id] = fastavro.parse_schema(json.loads(json.load(answer)["schema"]))
        return fastavro.schemaless_reader(io.BytesIO(value[5:]), self.known[schema_id])


def main():
    prefix = os.environ.get("MILLRACE_TOPIC_PREFIX", "")
    topic = (prefix + "." if prefix else "") + "bank-account.events"
    decoder = Decoder(os.environ["MILLRACE_REGISTRY_URL"])
    consumer = confluent_kafka.Consumer(
        {
            "bootstrap.servers": os.environ["MILLRACE_KAFKA_BOOTSTRAP"],
            "group.id": "read-events-example",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
        }
    )
    beginning = confluent_kafka.OFFSET_BEGINNING
    partitions = range(int(os.environ["MILLRACE_PARTITIONS"]))
    consumer.assign([confluent_kafka.TopicPartition(topic, number, beginning) for number in partitions])

    unread = set(partitions)
    while unread:
        message = consumer.poll(1)
        if message is None:
            continue
        if message.error():
            if message.error().code() != confluent_kafka.KafkaError._PARTITION_EOF:
                raise confluent_kafka.KafkaException(message.error())
            unread.discard(message.partition())
            continue
        headers = {name: value.decode() for name, value in message.headers()}
        event = {
            "account": message.key().decode(),
            "sequence": int(headers["ce_sequence"]),
            "type": headers["ce_type"].rsplit(".", 1)[1],
            "time": headers["ce_time"],
            "data": decoder.decode(message.value()),
        }
        print(json.dumps(event))
    consumer.close()


if __name__ == "__main__":
    main()
