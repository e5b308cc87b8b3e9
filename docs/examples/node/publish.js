// Publishes commands: node publish.js COMMAND.json …   (npm install amqplib)
// Exits with 0 only if the broker has confirmed every command. AMQP_URI is the address of the broker.
const fs = require("node:fs");
const path = require("node:path");
const amqp = require("amqplib");

const URI = process.env.AMQP_URI ?? "amqp://guest:guest@127.0.0.1:5672/%2f";

async function main(files) {
  const connection = await amqp.connect(URI);
  const channel = await connection.createConfirmChannel();
  // The broker returns a message that no queue accepts, before its confirm.
  const returned = new Set();
  channel.on("return", (message) => returned.add(message.properties.messageId));
  let failed = false;
  for (const file of files) {
    const properties = {
      contentType: "application/json",
      persistent: true, // kept on disk
      mandatory: true, // returned if no queue accepts it
      messageId: file, // identifies a returned message
      correlationId: path.basename(file), // becomes the correlation id of the event, e.g. an order number
    };
    const confirmed = await new Promise((settle) => {
      const refused = (error) => settle(!error);
      channel.publish("redemption.commands", "redemption.use", fs.readFileSync(file), properties, refused);
    });
    if (confirmed && !returned.has(file)) {
      console.log("confirmed", file);
    } else {
      // It was not accepted. It is always safe to publish the same command again.
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
