"""Publishes commands: python3 publish.py COMMAND.json ...   (apt install python3-pika, or pip install pika)

Exits with 0 only if the broker has confirmed every command. AMQP_URI is the address of the broker.
"""

import os
import sys

import pika
from pika.exceptions import NackError, UnroutableError

URI = os.environ.get("AMQP_URI", "amqp://guest:guest@127.0.0.1:5672/%2f")


def main(files):
    connection = pika.BlockingConnection(pika.URLParameters(URI))
    channel = connection.channel()
    # From here on basic_publish waits for the broker's confirm.
    channel.confirm_delivery()
    failed = False
    for file in files:
        with open(file, "rb") as opened:
            command = opened.read()
        properties = pika.BasicProperties(
            content_type="application/json",
            delivery_mode=2,  # kept on disk
            correlation_id=os.path.basename(file),  # becomes the correlation id of the event, e.g. an order number
        )
        try:
            # Mandatory: what no queue takes returned if no queue accepts it.
            channel.basic_publish("redemption.commands", "redemption.use", command, properties, mandatory=True)
            print("confirmed", file)
        except (UnroutableError, NackError) as error:
            # It was not accepted. It is always safe to publish the same command again.
            print("NOT taken", file, type(error).__name__)
            failed = True
    connection.close()
    return 1 if failed else 0


sys.exit(main(sys.argv[1:]))
