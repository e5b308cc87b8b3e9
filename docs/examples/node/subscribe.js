// Receives result events: node subscribe.js   (npm install amqplib)
// Each event is stored once, under its id, and only then acknowledged. AMQP_URI is the address of the broker; the events
// are kept in the folder results. A table with the id as primary key works too.
const fs = require("node:fs");
const path = require("node:path");
const amqp = require("amqplib");

const URI = process.env.AMQP_URI ?? "amqp://guest:guest@127.0.0.1:5672/%2f";
const FOLDER = "results";
const QUEUE = "orders.node";

// Whether the event is new. The file is complete before it gets its name, so its name marks a stored event.
function store(id, body) {
  if (!/^[0-9a-f-]{36}$/.test(id)) throw new Error(`${id} is not an event id`);
  const draft = path.join(FOLDER, `.draft-${process.pid}`);
  fs.writeFileSync(draft, body, { flush: true });
  try {
    fs.linkSync(draft, path.join(FOLDER, `${id}.json`));
    return true;
  } catch (error) {
    if (error.code !== "EEXIST") throw error;
    return false;
  } finally {
    fs.unlinkSync(draft);
    const folder = fs.openSync(FOLDER);
    fs.fsyncSync(folder); // survives a power failure
    fs.closeSync(folder);
  }
}

const USAGES = {
  SINGLE: "single_usage_detail",
  PROGRESSIVE_BUNDLE: "progressive_bundle_usage_detail",
  SEQUENTIAL: "sequential_usage_detail",
};
// Any member may be missing or of another type.
const object = (value) => (value !== null && typeof value === "object" && !Array.isArray(value) ? value : undefined);
const text = (value) => (typeof value === "string" ? value : undefined);
const whole = (value) => (Number.isSafeInteger(value) ? value : undefined);

// Did our order use the coupon? Who did, and when? What did it save, what is left, until when? See docs/coupon.md.
function answers(data) {
  const coupon = data.coupon ?? {};
  const redeemed = data.outcome === "redeemed";
  const state = coupon.coupon_state;
  const there = Object.keys(USAGES).filter((mode) => object(coupon[USAGES[mode]]));
  const mode = text(coupon.product_coupon?.usage_mode) ?? (there.length === 1 ? there[0] : undefined);
  const usage = object(coupon[USAGES[mode]]);
  let uses = state === "USED" ? [usage] : [];
  if (mode === "SEQUENTIAL") {
    const rounds = Array.isArray(usage?.detail_item_list) ? usage.detail_item_list : [];
    uses = rounds.filter((round) => round?.detail_state === "USED");
    const ours = uses.filter((round) => round.use_request_no === data.out_request_no);
    if (ours.length > 0 || redeemed) uses = ours;
  }
  const counts = mode === "PROGRESSIVE_BUNDLE" ? coupon.user_product_coupon_bundle_info : usage;
  const rest = whole(counts?.total_count) - whole(counts?.used_count); // not a number if one is missing
  let left = "-"; // unknown, which is not 0
  if (["SINGLE", "SEQUENTIAL"].includes(mode) && ["EXPIRED", "DELETED", "DEACTIVATED"].includes(state)) {
    left = 0;
  } else if (mode in USAGES && ["CONFIRMING", "PENDING", "EFFECTIVE", "USED"].includes(state)) {
    if (mode === "SINGLE") left = Number(state !== "USED");
    else if (rest >= 0) left = rest;
  }
  // The end of a used coupon of a bundle is not that of the next one.
  const ends = left !== "-" && !(mode === "PROGRESSIVE_BUNDLE" && state === "USED");
  const until = (ends && text(coupon.valid_end_time)) || "-";
  const shown = (read) => uses.map(read).filter((value) => value !== undefined).join() || "-";
  const word = { redeemed: "yes", unresolved: "unknown" }[data.outcome] ?? "no";
  const by = redeemed ? data.out_request_no : shown((use) => text(use?.use_request_no));
  const [when, saved] = [shown((use) => text(use?.use_time)), shown((use) => whole(use?.saved_amount))];
  return `used ${word} by ${by} when ${when} saved ${saved} left ${left} until ${until}`;
}

async function main() {
  fs.mkdirSync(FOLDER, { recursive: true });
  const connection = await amqp.connect(URI);
  connection.on("close", () => process.exit(1)); // the supervisor restarts this program
  const channel = await connection.createChannel();
  // Durable: it keeps events while this program is down. RabbitMQ 4 drops after 20 returns without the limit.
  const kind = { "x-queue-type": "quorum", "x-delivery-limit": 1_000_000 };
  await channel.assertQueue(QUEUE, { durable: true, arguments: kind });
  await channel.bindQueue(QUEUE, "redemption.results", "redemption.#");
  await channel.prefetch(50);
  console.log("waiting");
  await channel.consume(QUEUE, (message) => {
    if (message === null) process.exit(1); // the queue was deleted
    const event = JSON.parse(message.content);
    const word = store(event.id, message.content) ? "new" : "repeat";
    console.log(word, event.type, event.id, message.properties.correlationId, answers(event.data));
    // Last: an event without an ack is delivered again, as a repeat.
    channel.ack(message);
  });
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
