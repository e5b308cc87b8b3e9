// Reads events by the generated types, and says of each what a subscriber usually wants to know: see docs/coupon.md.
import { Convert, type Coupon, type Data } from "./event";

declare const require: (name: string) => { readFileSync(file: string, encoding: string): string };
declare const process: { argv: string[] };

interface Use {
  use_request_no?: string | null;
  use_time?: string | null;
  saved_amount?: number | null;
}

/** The mode that is named; else the one whose usage is there, if there is only one. */
function modeOf(coupon: Coupon): string | undefined {
  const there = [];
  if (coupon.single_usage_detail) there.push("SINGLE");
  if (coupon.progressive_bundle_usage_detail) there.push("PROGRESSIVE_BUNDLE");
  if (coupon.sequential_usage_detail) there.push("SEQUENTIAL");
  return coupon.product_coupon?.usage_mode ?? (there.length === 1 ? there[0] : undefined);
}

/** The use of the coupon, or of our round; of a coupon without a round of ours, every use. */
function usesOf(coupon: Coupon, data: Data): Use[] {
  const mode = modeOf(coupon);
  if (mode === "SEQUENTIAL") {
    const rounds = coupon.sequential_usage_detail?.detail_item_list ?? [];
    const used = rounds.filter((round) => round.detail_state === "USED");
    const ours = used.filter((round) => round.use_request_no === data.out_request_no);
    return ours.length > 0 || data.outcome === "redeemed" ? ours : used;
  }
  const usage = { SINGLE: coupon.single_usage_detail, PROGRESSIVE_BUNDLE: coupon.progressive_bundle_usage_detail }[mode ?? ""];
  return usage && coupon.coupon_state === "USED" ? [usage] : [];
}

/** How many uses are left; undefined if that is unknown, which is not 0. */
function leftOf(coupon: Coupon): number | undefined {
  const [mode, state] = [modeOf(coupon), coupon.coupon_state];
  if (["EXPIRED", "DELETED", "DEACTIVATED"].includes(state)) {
    return mode === "SINGLE" || mode === "SEQUENTIAL" ? 0 : undefined;
  }
  if (!["CONFIRMING", "PENDING", "EFFECTIVE", "USED"].includes(state)) return undefined;
  if (mode === "SINGLE") return state === "USED" ? 0 : 1;
  const bundle = mode === "PROGRESSIVE_BUNDLE" ? coupon.user_product_coupon_bundle_info : undefined;
  const counts = mode === "SEQUENTIAL" ? coupon.sequential_usage_detail : bundle;
  if (counts?.total_count == null || counts.used_count == null) return undefined;
  const left = counts.total_count - counts.used_count;
  return left < 0 ? undefined : left;
}

function answers(data: Data): string {
  const coupon = data.coupon;
  const uses = coupon ? usesOf(coupon, data) : [];
  const left = coupon ? leftOf(coupon) : undefined;
  // The end of a used coupon of a bundle is not that of the next one.
  const isNext = coupon && modeOf(coupon) === "PROGRESSIVE_BUNDLE" && coupon.coupon_state === "USED";
  const until = left === undefined || isNext ? undefined : coupon?.valid_end_time;
  const shown = (read: (use: Use) => unknown) => uses.map(read).filter((value) => value != null).join() || "-";
  const word = data.outcome === "redeemed" ? "yes" : data.outcome === "unresolved" ? "unknown" : "no";
  const by = data.outcome === "redeemed" ? data.out_request_no : shown((use) => use.use_request_no);
  const [when, saved] = [shown((use) => use.use_time), shown((use) => use.saved_amount)];
  return `used ${word} by ${by} when ${when} saved ${saved} left ${left ?? "-"} until ${until ?? "-"}`;
}

for (const file of process.argv.slice(2)) {
  console.log(answers(Convert.toRedemptionEvent(require("node:fs").readFileSync(file, "utf8")).data));
}
