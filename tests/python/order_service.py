"""An order service in another language: publishes one command and waits for its event on a queue of its own.

Standard input: {"uri", "commands", "results", "reply_to", "correlation_id", "message_id", "command"}; `command` is a
text and goes out as it stands. Standard output: the event with everything the broker reported about it, as JSON.
"""

import json
import sys

import pika

SECONDS_MAX = 30


def main():
    asked = json.load(sys.stdin)
    connection = pika.BlockingConnection(pika.URLParameters(asked["uri"]))
    channel = connection.channel()
    channel.confirm_delivery()

    # Bound before anything is published, or the event could pass before.
    queue = channel.queue_declare("", exclusive=True, auto_delete=True).method.queue
    channel.queue_bind(queue, asked["results"], routing_key=asked["reply_to"])

    # Raises where the broker does not confirm it or cannot route it.
    channel.basic_publish(
        asked["commands"],
        "redemption.use",
        asked["command"].encode(),
        pika.BasicProperties(
            content_type="application/json",
            delivery_mode=2,
            message_id=asked["message_id"],
            correlation_id=asked["correlation_id"],
            reply_to=asked["reply_to"],
        ),
        mandatory=True,
    )

    for method, properties, body in channel.consume(queue, inactivity_timeout=SECONDS_MAX):
        if method is None:
            sys.exit(f"no event within {SECONDS_MAX} s")
        channel.basic_ack(method.delivery_tag)
        json.dump(
            {
                "exchange": method.exchange,
                "routing_key": method.routing_key,
                "content_type": properties.content_type,
                "delivery_mode": properties.delivery_mode,
                "message_id": properties.message_id,
                "correlation_id": properties.correlation_id,
                "cc": (properties.headers or {}).get("CC"),
                "event": json.loads(body),
            },
            sys.stdout,
        )
        break
    connection.close()


main()
