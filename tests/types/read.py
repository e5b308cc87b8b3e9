"""Reads events by the generated types, and says of each what a subscriber usually wants to know: see docs/coupon.md."""

import json
import sys
from typing import TypedDict

from event import Coupon, Data, RedemptionResultEvent


class Use(TypedDict):
    number: str | None
    time: str | None
    saved: int | None


def mode_of(coupon: Coupon) -> str | None:
    """The mode that is named; else the one whose usage is there, if there is only one."""
    named = (coupon.get("product_coupon") or {}).get("usage_mode")
    usages = {
        "SINGLE": coupon.get("single_usage_detail"),
        "PROGRESSIVE_BUNDLE": coupon.get("progressive_bundle_usage_detail"),
        "SEQUENTIAL": coupon.get("sequential_usage_detail"),
    }
    there = [mode for mode, usage in usages.items() if usage is not None]
    return named or (there[0] if len(there) == 1 else None)


def uses_of(coupon: Coupon, data: Data) -> list[Use]:
    """The use of the coupon, or of our round; of a coupon without a round of ours, every use."""
    mode = mode_of(coupon)
    if mode == "SEQUENTIAL":
        rounds = (coupon.get("sequential_usage_detail") or {}).get("detail_item_list") or []
        used = [
            Use(number=round.get("use_request_no"), time=round.get("use_time"), saved=None)
            for round in rounds
            if round.get("detail_state") == "USED"
        ]
        ours = [use for use in used if use["number"] == data["out_request_no"]]
        return ours if ours or data["outcome"] == "redeemed" else used
    if coupon["coupon_state"] != "USED":
        return []
    single, bundle = coupon.get("single_usage_detail"), coupon.get("progressive_bundle_usage_detail")
    if mode == "SINGLE" and single:
        return [Use(number=single.get("use_request_no"), time=single.get("use_time"), saved=single.get("saved_amount"))]
    if mode == "PROGRESSIVE_BUNDLE" and bundle:
        return [Use(number=bundle.get("use_request_no"), time=bundle.get("use_time"), saved=bundle.get("saved_amount"))]
    return []


def left_of(coupon: Coupon) -> int | None:
    """How many uses are left; None if that is unknown, which is not 0."""
    mode, state = mode_of(coupon), coupon["coupon_state"]
    if state in ("EXPIRED", "DELETED", "DEACTIVATED"):
        return 0 if mode in ("SINGLE", "SEQUENTIAL") else None
    if state not in ("CONFIRMING", "PENDING", "EFFECTIVE", "USED"):
        return None
    total = used = None
    if mode == "SINGLE":
        return int(state != "USED")
    if mode == "SEQUENTIAL" and (rounds := coupon.get("sequential_usage_detail")):
        total, used = rounds.get("total_count"), rounds.get("used_count")
    if mode == "PROGRESSIVE_BUNDLE" and (bundle := coupon.get("user_product_coupon_bundle_info")):
        total, used = bundle.get("total_count"), bundle.get("used_count")
    return None if total is None or used is None or used > total else total - used


def answers(data: Data) -> str:
    coupon, outcome = data["coupon"], data["outcome"]
    uses, left, until = [], None, None
    if coupon is not None:
        uses, left = uses_of(coupon, data), left_of(coupon)
        # The end of a used coupon of a bundle is not that of the next one.
        is_next = mode_of(coupon) == "PROGRESSIVE_BUNDLE" and coupon["coupon_state"] == "USED"
        until = None if left is None or is_next else coupon.get("valid_end_time")
    word = {"redeemed": "yes", "unresolved": "unknown"}.get(outcome, "no")
    by = ",".join(use["number"] for use in uses if use["number"] is not None) or "-"
    when = ",".join(use["time"] for use in uses if use["time"] is not None) or "-"
    saved = ",".join(str(use["saved"]) for use in uses if use["saved"] is not None) or "-"
    by = str(data["out_request_no"]) if outcome == "redeemed" else by
    return f"used {word} by {by} when {when} saved {saved} left {'-' if left is None else left} until {until or '-'}"


for file in sys.argv[1:]:
    with open(file, encoding="utf-8") as text:
        event: RedemptionResultEvent = json.load(text)
    print(answers(event["data"]))
