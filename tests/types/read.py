"""Reads events by the generated types, and says of each what a subscriber usually wants to know."""

import json
import sys

from event import Coupon, RedemptionResultEvent


def left(coupon: Coupon) -> int:
    bundle, rounds = coupon.get("user_product_coupon_bundle_info"), coupon.get("sequential_usage_detail")
    if bundle is not None:
        return bundle["total_count"] - bundle["used_count"]
    if rounds is not None:
        return rounds["total_count"] - rounds["used_count"]
    return int(coupon["coupon_state"] == "EFFECTIVE")


def numbers(coupon: Coupon) -> list[str | None]:
    used = [coupon.get("single_usage_detail", {}).get("use_request_no")]
    used.append(coupon.get("progressive_bundle_usage_detail", {}).get("use_request_no"))
    rounds = coupon.get("sequential_usage_detail", {}).get("detail_item_list", [])
    return used + [item.get("use_request_no") for item in rounds]


for file in sys.argv[1:]:
    with open(file, encoding="utf-8") as text:
        event: RedemptionResultEvent = json.load(text)
    data = event["data"]
    coupon = data["coupon"]
    if coupon is None:
        print(data["outcome"], "none")
        continue
    ours = str(data["out_request_no"] in numbers(coupon)).lower()
    print(data["outcome"], "ours", ours, "left", left(coupon), "until", coupon.get("valid_end_time"))
