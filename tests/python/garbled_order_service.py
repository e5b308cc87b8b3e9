"""An order service that writes its properties in another encoding than UTF-8: GBK, as older systems in China do.

Standard input: {"uri", "commands", "published": [{"command", "garbled"}]}; each command is a text and goes out as it
stands, those that are `garbled` with a `correlation_id` in GBK. Standard output: nothing.
"""

import json
import sys

import pika


def main():
    asked = json.load(sys.stdin)
    connection = pika.BlockingConnection(pika.URLParameters(asked["uri"]))
    channel = connection.channel()
    channel.confirm_delivery()
    for published in asked["published"]:
        properties = pika.BasicProperties(delivery_mode=2)
        if published["garbled"]:
            properties.correlation_id = "订单".encode("gbk")
        channel.basic_publish(
            asked["commands"], "redemption.use", published["command"].encode(), properties, mandatory=True
        )
    connection.close()


main()
