"""Reads every event with Confluent's stock client; prints one JSON line a record.

Nothing here is ours: the consumer, the registry client and the deserializer are the package's own.
"""

import json
import sys

from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer
from confluent_kafka.serialization import MessageField, SerializationContext


def main(brokers: str, topic: str, registry: str, expected: int) -> int:
    deserialize = AvroDeserializer(SchemaRegistryClient({"url": registry}))
    consumer = Consumer({"bootstrap.servers": brokers, "group.id": "unused", "enable.auto.commit": False})
    partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
    consumer.assign([TopicPartition(topic, partition, 0) for partition in partitions])
    read = 0
    while read < expected:
        message = consumer.poll(30)
        if message is None:
            print(f"{read} of {expected} records in 30 s", file=sys.stderr)
            return 1
        if message.error():
            raise KafkaException(message.error())
        value = deserialize(message.value(), SerializationContext(topic, MessageField.VALUE, message.headers()))
        headers = {name: text.decode() for name, text in message.headers()}
        row = {"key": message.key().decode(), "headers": headers, "value": value}
        print(json.dumps(row, default=str))
        read += 1
    consumer.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
