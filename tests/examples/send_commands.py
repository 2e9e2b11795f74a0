#!/usr/bin/env python3
"""Sends commands to Millrace from Python, straight to the Kafka topic.

    pip install confluent-kafka fastavro
    set -a; . .millrace/env; set +a
    python3 tests/examples/send_commands.py acc-7

Opens the account, pays 100.00 in and takes 50.00 out. Nothing but plain clients is needed: any
partitioner will do (this is librdkafka's default), and any naming of subjects in the registry.
"""

import io
import json
import os
import sys
import urllib.request

import confluent_kafka
import fastavro

NAMESPACE = "millrace.bank_account.commands"
REFERENCE = {"name": "reference", "type": ["null", "string"], "default": None}
SCHEMAS = {
    "OpenAccount": [{"name": "owner", "type": "string"}, {"name": "currency", "type": "string"}],
    "Deposit": [{"name": "amount_minor", "type": "long"}, REFERENCE],
    "Withdraw": [{"name": "amount_minor", "type": "long"}, REFERENCE],
}


class Encoder:
    """Encodes records in the Confluent wire format: a zero, the schema's id, the Avro datum."""

    def __init__(self, registry_url):
        self.registry_url = registry_url
        self.known = {}

    def encode(self, name, fields):
        if name not in self.known:
            schema = {"type": "record", "namespace": NAMESPACE, "name": name, "fields": SCHEMAS[name]}
            self.known[name] = (self.register(f"{NAMESPACE}.{name}", schema), fastavro.parse_schema(schema))
        schema_id, schema = self.known[name]
        datum = io.BytesIO()
        fastavro.schemaless_writer(datum, schema, fields)
        return b"\0" + schema_id.to_bytes(4, "big") + datum.getvalue()

    def register(self, subject, schema):
        request = urllib.request.Request(
            f"{self.registry_url}/subjects/{subject}/versions",
            data=json.dumps({"schema": json.dumps(schema)}).encode(),
            headers={"Content-Type": "application/vnd.schemaregistry.v1+json"},
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)["id"]


def delivered(error, message):
    if error:
        sys.exit(f"not sent: {error}")
    print(f"{message.topic()}/{message.partition()}/{message.offset()}")


def main(account):
    prefix = os.environ.get("MILLRACE_TOPIC_PREFIX", "")
    topic = (prefix + "." if prefix else "") + "bank-account.commands"
    encoder = Encoder(os.environ["MILLRACE_REGISTRY_URL"])
    producer = confluent_kafka.Producer(
        {"bootstrap.servers": os.environ["MILLRACE_KAFKA_BOOTSTRAP"], "enable.idempotence": True}
    )

    def send(name, fields, command_id=None):
        # The command id makes a repeat harmless. It may be left out.
        headers = {"ce_id": command_id} if command_id else {}
        producer.produce(
            topic, key=account, value=encoder.encode(name, fields), headers=headers, on_delivery=delivered
        )

    send("OpenAccount", {"owner": "Grace", "currency": "EUR"}, command_id="open")
    send("Deposit", {"amount_minor": 10_000, "reference": "salary"}, command_id="salary-2026-01")
    send("Withdraw", {"amount_minor": 5_000})
    producer.flush(30)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
