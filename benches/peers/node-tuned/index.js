// The job written for speed, without a payment library: amqplib, undici and node:crypto. The reply is verified and
// read once, and its bytes go into the event as they came.
import { createPrivateKey, createPublicKey, randomUUID, randomBytes, sign, verify } from 'node:crypto';
import { readFileSync } from 'node:fs';
import amqp from 'amqplib';
import { Pool } from 'undici';

const env = process.env;
const inFlight = Number(env.PEER_IN_FLIGHT);
const privateKey = createPrivateKey(readFileSync(env.PEER_KEY_FILE));
const publicKey = createPublicKey(readFileSync(env.PEER_PUBLIC_KEY_FILE));
const pool = new Pool(env.PEER_BASE_URL, { connections: inFlight, pipelining: 1 });

const connection = await amqp.connect(env.PEER_URI, { noDelay: true });
const results = await connection.createConfirmChannel();
const commands = await connection.createChannel();
const returned = new Set();
results.on('return', (message) => returned.add(message.properties.messageId));

function authorization(target, body) {
  const timestamp = Math.floor(Date.now() / 1000);
  const nonce = randomBytes(16).toString('hex');
  const text = `POST\n${target}\n${timestamp}\n${nonce}\n${body}\n`;
  const signature = sign('RSA-SHA256', Buffer.from(text), privateKey).toString('base64');
  return `WECHATPAY2-SHA256-RSA2048 mchid="${env.PEER_MCHID}",nonce_str="${nonce}",signature="${signature}",timestamp="${timestamp}",serial_no="${env.PEER_SERIAL}"`;
}

function verified(headers, body) {
  const timestamp = headers['wechatpay-timestamp'];
  if (headers['wechatpay-serial'] !== env.PEER_PUBLIC_KEY_ID) return false;
  if (!(Math.abs(Date.now() / 1000 - timestamp) < 300)) return false;
  const text = Buffer.from(`${timestamp}\n${headers['wechatpay-nonce']}\n${body}\n`);
  return verify('RSA-SHA256', text, publicKey, Buffer.from(headers['wechatpay-signature'], 'base64'));
}

async function redeem(message) {
  const command = JSON.parse(message.content);
  const { openid, coupon_code: code, ...fields } = command;
  const target = `/v3/marketing/partner/product-coupon/users/${openid}/coupons/${code}/use`;
  const sent = JSON.stringify(fields);
  const reply = await pool.request({
    path: target,
    method: 'POST',
    body: sent,
    headers: {
      accept: 'application/json',
      'content-type': 'application/json',
      'user-agent': 'peer',
      'wechatpay-serial': env.PEER_PUBLIC_KEY_ID,
      authorization: authorization(target, sent),
    },
  });
  const body = await reply.body.text();
  if (reply.statusCode !== 200 || !verified(reply.headers, body)) throw new Error(`status ${reply.statusCode}`);
  const { coupon_state: state } = JSON.parse(body);
  const id = randomUUID();
  const head = JSON.stringify({
    specversion: '1.0',
    id,
    source: '/peer',
    type: 'redemption.redeemed.v1',
    subject: code,
    time: new Date().toISOString(),
    datacontenttype: 'application/json',
  });
  const data = JSON.stringify({ ...command, outcome: 'redeemed', coupon_state: state });
  const event = Buffer.from(`${head.slice(0, -1)},"data":${data.slice(0, -1)},"coupon":${body}}}`);
  await new Promise((resolve, reject) => {
    const options = { deliveryMode: 2, mandatory: true, messageId: id, contentType: 'application/cloudevents+json' };
    results.publish(env.PEER_RESULTS, `redemption.redeemed.${command.brand_id}`, event, options, (error) => {
      if (error || (returned.size > 0 && returned.delete(id))) reject(error ?? new Error('the event was returned'));
      else resolve();
    });
  });
}

await commands.prefetch(inFlight);
await commands.consume(env.PEER_COMMANDS, (message) => {
  if (message === null) process.exit(1);
  redeem(message).then(
    () => commands.ack(message),
    (error) => {
      console.error(error.message);
      commands.nack(message);
    },
  );
});
