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
  if (!/^[0-9a-f-]{36}$/.test(id)) throw new Error(`${id} is no event id`);
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

// How many uses are left, and until when. Any member may be missing: see docs/coupon.md.
function left(coupon) {
  const counted = coupon?.user_product_coupon_bundle_info ?? coupon?.sequential_usage_detail;
  const uses = counted ? counted.total_count - counted.used_count : Number(coupon?.coupon_state === "EFFECTIVE");
  return `left ${Number.isInteger(uses) ? uses : "-"} until ${coupon?.valid_end_time ?? "-"}`;
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
    console.log(word, event.type, event.id, message.properties.correlationId, left(event.data.coupon));
    // Last: an event without an ack is delivered again, as a repeat.
    channel.ack(message);
  });
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
