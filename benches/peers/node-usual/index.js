// The job as its libraries' README files show it: amqplib and wechatpay-axios-plugin.
import { randomUUID } from 'node:crypto';
import { readFileSync } from 'node:fs';
import http from 'node:http';
import amqp from 'amqplib';
import { Rsa, Wechatpay } from 'wechatpay-axios-plugin';

const env = process.env;
const inFlight = Number(env.PEER_IN_FLIGHT);

const wxpay = new Wechatpay({
  mchid: env.PEER_MCHID,
  serial: env.PEER_SERIAL,
  privateKey: Rsa.from(readFileSync(env.PEER_KEY_FILE), Rsa.KEY_TYPE_PRIVATE),
  certs: { [env.PEER_PUBLIC_KEY_ID]: Rsa.from(readFileSync(env.PEER_PUBLIC_KEY_FILE), Rsa.KEY_TYPE_PUBLIC) },
  baseURL: `${env.PEER_BASE_URL}/`,
  headers: { 'Wechatpay-Serial': env.PEER_PUBLIC_KEY_ID },
  httpAgent: new http.Agent({ keepAlive: true, maxSockets: inFlight }),
});

const connection = await amqp.connect(env.PEER_URI);
const results = await connection.createConfirmChannel();
const commands = await connection.createChannel();
const returned = new Set();
results.on('return', (message) => returned.add(message.properties.messageId));

function publish(key, event) {
  return new Promise((resolve, reject) => {
    const options = {
      persistent: true,
      mandatory: true,
      messageId: event.id,
      contentType: 'application/cloudevents+json',
    };
    results.publish(env.PEER_RESULTS, key, Buffer.from(JSON.stringify(event)), options, (error) => {
      if (error || returned.delete(event.id)) reject(error ?? new Error('the event was returned'));
      else resolve();
    });
  });
}

async function redeem(message) {
  const command = JSON.parse(message.content.toString());
  const { openid, coupon_code: code, ...body } = command;
  const path = `v3/marketing/partner/product-coupon/users/${openid}/coupons/${code}/use`;
  const { data: coupon } = await wxpay.client.v3.post(path, body);
  await publish(`redemption.redeemed.${command.brand_id}`, {
    specversion: '1.0',
    id: randomUUID(),
    source: '/peer',
    type: 'redemption.redeemed.v1',
    subject: code,
    time: new Date().toISOString(),
    datacontenttype: 'application/json',
    data: { ...command, outcome: 'redeemed', coupon_state: coupon.coupon_state, coupon },
  });
}

await commands.prefetch(inFlight);
await commands.consume(env.PEER_COMMANDS, async (message) => {
  if (message === null) process.exit(1);
  try {
    await redeem(message);
    commands.ack(message);
  } catch (error) {
    console.error(error.message);
    commands.nack(message);
  }
});
