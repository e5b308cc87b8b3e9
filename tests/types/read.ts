// Reads events by the generated types, and says of each what a subscriber usually wants to know.
import { Convert, type Coupon } from "./event";

declare const require: (name: string) => { readFileSync(file: string, encoding: string): string };
declare const process: { argv: string[] };

function left(coupon: Coupon): number {
  const counted = coupon.user_product_coupon_bundle_info ?? coupon.sequential_usage_detail;
  if (counted) return counted.total_count! - counted.used_count!;
  return coupon.coupon_state === "EFFECTIVE" ? 1 : 0;
}

for (const file of process.argv.slice(2)) {
  const { data } = Convert.toRedemptionEvent(require("node:fs").readFileSync(file, "utf8"));
  const coupon = data.coupon;
  if (!coupon) {
    console.log(`${data.outcome} none`);
    continue;
  }
  const rounds = coupon.sequential_usage_detail?.detail_item_list ?? [];
  const usages = [coupon.single_usage_detail, coupon.progressive_bundle_usage_detail, ...rounds];
  const ours = usages.some((usage) => usage?.use_request_no === data.out_request_no);
  console.log(`${data.outcome} ours ${ours} left ${left(coupon)} until ${coupon.valid_end_time}`);
}
