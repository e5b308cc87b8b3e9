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


USAGES = {
    "SINGLE": "single_usage_detail",
    "PROGRESSIVE_BUNDLE": "progressive_bundle_usage_detail",
    "SEQUENTIAL": "sequential_usage_detail",
}


def pick(value, name, kind):
    """A member; None if it is missing or of another type."""
    found = value.get(name) if isinstance(value, dict) else None
    return found if type(found) is kind else None


def answers(data):
    """Did our order use the coupon? Who did, and when? What did it save, what is left, until when? See docs/coupon.md."""
    coupon, number, redeemed = data["coupon"] or {}, data["out_request_no"], data["outcome"] == "redeemed"
    state, there = pick(coupon, "coupon_state", str), [m for m in USAGES if pick(coupon, USAGES[m], dict) is not None]
    mode = pick(pick(coupon, "product_coupon", dict), "usage_mode", str) or (there[0] if len(there) == 1 else None)
    usage = pick(coupon, USAGES.get(mode), dict)
    uses = [usage] if state == "USED" else []
    if mode == "SEQUENTIAL":
        uses = [use for use in pick(usage, "detail_item_list", list) or [] if pick(use, "detail_state", str) == "USED"]
        ours = [use for use in uses if pick(use, "use_request_no", str) == number]
        uses = ours if ours or redeemed else uses
    counts = pick(coupon, "user_product_coupon_bundle_info", dict) if mode == "PROGRESSIVE_BUNDLE" else usage
    total, used = pick(counts, "total_count", int), pick(counts, "used_count", int)
    left = "-"  # unknown, which is not 0
    if mode in ("SINGLE", "SEQUENTIAL") and state in ("EXPIRED", "DELETED", "DEACTIVATED"):
        left = 0
    elif mode in USAGES and state in ("CONFIRMING", "PENDING", "EFFECTIVE", "USED"):
        if mode == "SINGLE":
            left = int(state != "USED")
        elif total is not None and used is not None and used <= total:
            left = total - used
    # The end of a used coupon of a bundle is not that of the next one.
    ends = left != "-" and (mode, state) != ("PROGRESSIVE_BUNDLE", "USED")
    until = ends and pick(coupon, "valid_end_time", str) or "-"

    def shown(name, kind):
        return ",".join(str(pick(use, name, kind)) for use in uses if pick(use, name, kind) is not None) or "-"

    word = {"redeemed": "yes", "unresolved": "unknown"}.get(data["outcome"], "no")
    by, when = number if redeemed else shown("use_request_no", str), shown("use_time", str)
    return f"used {word} by {by} when {when} saved {shown('saved_amount', int)} left {left} until {until}"


def take(channel, method, properties, body):
    event = json.loads(body)
    # One transaction stores the id and applies the changes of the event, or does neither.
    with store:
        row = (event["id"], event["type"], body.decode())
        new = store.execute("INSERT OR IGNORE INTO results VALUES (?, ?, ?)", row).rowcount == 1
        # if new: apply the other changes of the event here
    word = "new" if new else "repeat"
    print(word, event["type"], event["id"], properties.correlation_id, answers(event["data"]), flush=True)
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
