"""Receives result events: python3 subscribe.py   (apt install python3-pika, or pip install pika)

Each event is stored once, under its id, and only then acknowledged. AMQP_URI is the address of the broker; the
events are kept in the SQLite file results.sqlite.
"""

import json
import os
import sqlite3

import pika

URI = os.environ.get("AMQP_URI", "amqp://guest:guest@127.0.0.1:5672/%2f")
QUEUE = "orders.python"

store = sqlite3.connect("results.sqlite")
store.execute("CREATE TABLE IF NOT EXISTS results (id TEXT PRIMARY KEY, type TEXT NOT NULL, event TEXT NOT NULL)")


def left(coupon):
    """How many uses are left, and until when. Any member may be missing, and of any type: see docs/coupon.md."""
    counted = coupon.get("user_product_coupon_bundle_info") or coupon.get("sequential_usage_detail")
    try:
        uses = counted["total_count"] - counted["used_count"] if counted else int(coupon["coupon_state"] == "EFFECTIVE")
    except (KeyError, TypeError):
        uses = "-"
    return f"left {uses} until {coupon.get('valid_end_time', '-')}"


def take(channel, method, properties, body):
    event = json.loads(body)
    # One transaction stores the id and applies the changes of the event, or does neither.
    with store:
        row = (event["id"], event["type"], body.decode())
        new = store.execute("INSERT OR IGNORE INTO results VALUES (?, ?, ?)", row).rowcount == 1
        # if new: apply the other changes of the event here
    word = "new" if new else "repeat"
    coupon = left(event["data"]["coupon"] or {"coupon_state": None})
    print(word, event["type"], event["id"], properties.correlation_id, coupon, flush=True)
    # Last: an event without an ack is delivered again, as a repeat.
    channel.basic_ack(method.delivery_tag)


def main():
    channel = pika.BlockingConnection(pika.URLParameters(URI)).channel()
    # Durable: it keeps events while this program is down. RabbitMQ 4 drops after 20 returns without the limit.
    kind = {"x-queue-type": "quorum", "x-delivery-limit": 1_000_000}
    channel.queue_declare(QUEUE, durable=True, arguments=kind)
    channel.queue_bind(QUEUE, "redemption.results", "redemption.#")
    channel.basic_qos(prefetch_count=50)
    channel.basic_consume(QUEUE, take)  # acknowledged explicitly
    print("waiting", flush=True)
    channel.start_consuming()


main()
