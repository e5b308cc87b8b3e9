// Publishes commands: node publish.js COMMAND.json …   (npm install amqplib)
// Ends with 0 only when the broker has confirmed every one of them. AMQP_URI says where it is.
const fs = require("node:fs");
const path = require("node:path");
const amqp = require("amqplib");

const URI = process.env.AMQP_URI ?? "amqp://guest:guest@127.0.0.1:5672/%2f";

async function main(files) {
  const connection = await amqp.connect(URI);
  const channel = await connection.createConfirmChannel();
  // What no queue takes comes back, and does so before its confirm.
  const returned = new Set();
  channel.on("return", (message) => returned.add(message.properties.messageId));
  let failed = false;
  for (const file of files) {
    const properties = {
      contentType: "application/json",
      persistent: true, // kept on disk
      mandatory: true, // comes back instead of vanishing
      messageId: file, // tells what came back
      correlationId: path.basename(file), // comes back with the event: an order number, say
    };
    const confirmed = await new Promise((settle) => {
      const refused = (error) => settle(!error);
      channel.publish("redemption.commands", "redemption.use", fs.readFileSync(file), properties, refused);
    });
    if (confirmed && !returned.has(file)) {
      console.log("confirmed", file);
    } else {
      // It was not taken. To publish the same command again is always safe.
      console.log("NOT taken", file, confirmed ? "no queue" : "refused");
      failed = true;
    }
  }
  await connection.close();
  process.exitCode = failed ? 1 : 0;
}

main(process.argv.slice(2)).catch((error) => {
  console.error(error);
  process.exit(1);
});
